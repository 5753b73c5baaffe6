"""What all codecs of sounds do alike: any number of clips of any lengths, in batches, each with the codes it has alone.

A codec hands over its network as layers that can be walked over clips of different lengths
(:mod:`pipeline.tokenizers.ragged`) and its codebooks; this is the rest, in both directions: batches by audio seconds,
convolutions by neighbours in length, an LSTM over many clips at once, quantisation in float32, decoding.

In float32 codes are the same alone and in any batch, but for two codes that float32 cannot tell apart; with ``fp16``,
rounding depends on the shape of a batch, and so do the few codes that it changes.

Letters: B clips, T the longest length, D latent width, Q levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from pipeline.tokenizers.base import Medium
from pipeline.tokenizers.batching import MAX_WASTE, plan_batches, run_batches
from pipeline.tokenizers.precision import arithmetic, encoder_dtype
from pipeline.tokenizers.ragged import lengths_after
from pipeline.tokenizers.rvq import decode_residual, encode_residual, half_norms
from pipeline.tokenizers.sounds import checked_codes, checked_wave
from pipeline.tokenizers.weights import CodecOptions, choose_device
from shards.errors import TokenizerError
from shards.modality import Modality
from shards.vocabulary import Codes

Latents = npt.NDArray[np.float32]
"""(frames, D)."""
Walk = Callable[[Iterable[nn.Module], torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Layers, (B, C, T) and lengths (B,) to (B, C', T') and the new lengths."""

_LSTM_BATCHES = 4
"""The LSTM of the encoder takes so many batches of the convolutions at once."""
_CPU_CONV_S = 2.0
"""On a CPU the convolutions take so much sound at a time: what does not fit its cache is slower, not faster."""


class SoundCodecOptions(CodecOptions):
    """How sounds are batched; a codec adds its files."""

    batch_s: float = Field(default=120.0, gt=0.0)
    """At most so many seconds of sound in one pass through the convolutions, padding included."""


@dataclass(frozen=True, slots=True)
class SoundNetwork:
    """A loaded network, ready to be walked: weight norm folded, the encoder in its dtype.

    Attributes:
        front: layers of the encoder before its LSTM, ``lstm`` that one if there is one, ``back`` those after it.
        decoder: latents to waves.
        codebooks: (Q, K, D) float32, as many levels as are kept at rest.
        walk: runs layers over clips of different lengths.
    """

    front: Sequence[nn.Module]
    lstm: Sequence[nn.Module]
    back: Sequence[nn.Module]
    decoder: Sequence[nn.Module]
    codebooks: torch.Tensor
    walk: Walk


class SoundCodec:
    """Codec of sounds; implements ``MediaTokenizer`` and ``MediaDetokenizer``."""

    def __init__(
        self, name: str, modality: Modality, network: SoundNetwork, options: SoundCodecOptions, *, fingerprint: str
    ) -> None:
        """Take over a network, which is moved to the device."""
        self.name, self.modality, self.fingerprint = name, modality, fingerprint
        self.rate = modality.rate
        self.codebook_size, self.levels = self.rate.codebook_size, self.rate.levels_at_rest
        self.sample_rate_hz, self.frame_rate_hz = self.rate.sample_rate_hz, self.rate.frame_rate_hz
        self._options = options
        self._device = choose_device(options.device)
        self._dtype = encoder_dtype(options.precision)
        for layers in (network.front, network.lstm, network.back, network.decoder):
            for layer in layers:
                layer.to(self._device)
        self._network, self._walk = network, network.walk
        self._front: Callable[..., tuple[torch.Tensor, torch.Tensor]] = lambda x, lengths: network.walk(
            network.front, x, lengths
        )
        if options.compile:
            self._front = torch.compile(self._front, dynamic=True)
        self._codebooks = network.codebooks.to(self._device)
        self._half_norms_QK = half_norms(self._codebooks)
        # One code more, of nothing: what a clip has no code for adds nothing.
        self._padded_codebooks = functional.pad(self._codebooks, (0, 0, 0, 1))

    def frames_for(self, num_samples: int) -> int:
        """Every started frame counts."""
        return self.rate.frames_for(num_samples)

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(frames, levels) codes per wave of (samples,) float32 at the codec's sample rate.

        Raises:
            ValueError: wrong shape or dtype, a value that is no number, or an empty sound.
            TokenizerError: the encoder overflowed, which only half precision can.
        """
        return self._encode(batch, self._quantise)

    def latents(self, batch: Sequence[Medium]) -> list[Latents]:
        """(frames, D) float32 per wave: what :meth:`encode` quantises."""
        return self._encode(batch, _as_arrays)

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(frames * samples_per_frame,) float32 per item, from all levels or from the first ones only.

        Raises:
            ValueError: not (frames, 1 to levels), or a code out of range.
        """
        return self.decode_levels(batch, first_level=0)

    def decode_levels(self, batch: Sequence[Codes], *, first_level: int) -> list[Medium]:
        """As :meth:`decode`, but the codes are of ``first_level`` (from 0) and those above it.

        Raises:
            ValueError: not (frames, 1 to levels - first_level), or a code out of range.
        """
        items = [
            checked_codes(codes, levels=self.levels - first_level, codebook_size=self.codebook_size, name=self.name)
            for codes in batch
        ]
        samples = [len(codes) * self.rate.samples_per_frame for codes in items]

        def collate(indices: Sequence[int]) -> torch.Tensor:
            longest = max(len(items[index]) for index in indices)
            codes_BTQ = torch.full((len(indices), longest, self.levels), self.codebook_size)
            for row, index in zip(codes_BTQ, indices, strict=True):
                codes = torch.from_numpy(items[index].astype(np.int64))
                row[: len(codes), first_level : first_level + codes.shape[1]] = codes
            return codes_BTQ

        def forward(codes_BTQ: torch.Tensor, indices: Sequence[int]) -> list[Medium]:
            latents_BDT = decode_residual(codes_BTQ, self._padded_codebooks).transpose(1, 2)
            frames_B = torch.tensor([len(items[index]) for index in indices]).to(self._device, non_blocking=True)
            waves = self._walk(self._network.decoder, latents_BDT, frames_B)[0].cpu().numpy()
            return [wave[0, : samples[index]].copy() for wave, index in zip(waves, indices, strict=True)]

        with torch.inference_mode(), arithmetic(self._options.precision):
            return run_batches(self._plan(samples), collate, forward, device=self._device)

    def _encode(
        self, batch: Sequence[Medium], finish: Callable[[Sequence[torch.Tensor]], list[npt.NDArray[Any]]]
    ) -> list[npt.NDArray[Any]]:
        """Encode in batches; ``finish`` is given the latents (frames, D) of each clip of one."""
        waves = [checked_wave(wave, self.name) for wave in batch]
        samples = [len(wave) for wave in waves]

        def collate(indices: Sequence[int]) -> torch.Tensor:
            x_B1T = torch.zeros(len(indices), 1, max(samples[index] for index in indices))
            for row, index in zip(x_B1T, indices, strict=True):
                row[0, : samples[index]] = torch.from_numpy(waves[index])
            return x_B1T

        def forward(x_B1T: torch.Tensor, indices: Sequence[int]) -> list[npt.NDArray[Any]]:
            return finish(self._latents(x_B1T.to(self._dtype), [samples[index] for index in indices]))

        with torch.inference_mode(), arithmetic(self._options.precision):
            return run_batches(self._plan(samples, _LSTM_BATCHES, max_waste=1.0), collate, forward, device=self._device)

    def _latents(self, x_B1T: torch.Tensor, samples: Sequence[int]) -> list[torch.Tensor]:
        """(frames, D) float32 of each clip; the clips are sorted by length, the longest first.

        Convolutions take neighbours in length at a time, for they compute the padding too. The LSTM takes all together:
        only many clips at a time make its serial steps pay.
        """
        frames = [self.frames_for(count) for count in samples]
        lengths_B = torch.tensor(samples).to(self._device, non_blocking=True)
        frames_B = lengths_after(lengths_B, self.rate.samples_per_frame)
        parts = self._parts(samples)
        fronts = [self._front(x_B1T[part, :, : samples[part.start]], lengths_B[part])[0] for part in parts]
        hidden_BCT = torch.cat([functional.pad(one, (0, frames[0] - one.shape[-1])) for one in fronts])
        hidden_BCT, _ = self._walk(self._network.lstm, hidden_BCT, torch.tensor(frames))
        latents: list[torch.Tensor] = []
        for part in parts:
            y_BDT, _ = self._walk(self._network.back, hidden_BCT[part, :, : frames[part.start]], frames_B[part])
            latents += [y[:, :count].t().float() for y, count in zip(y_BDT, frames[part], strict=True)]
        return latents

    def _parts(self, samples: Sequence[int]) -> list[slice]:
        """How the clips of a batch go through the convolutions: by the second on a GPU, by the cache on a CPU."""
        seconds = self._options.batch_s if self._device.type != "cpu" else min(self._options.batch_s, _CPU_CONV_S)
        groups = plan_batches(samples, max_items=len(samples), max_total=round(seconds * self.sample_rate_hz))
        return [slice(group[0], group[-1] + 1) for group in groups]

    def _quantise(self, clips: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
        latents_ND = torch.cat(list(clips))
        if not bool(latents_ND.isfinite().all()):
            raise TokenizerError(
                f"{self.name}: expected finite latents, found an overflow with precision = {self._options.precision!r}; "
                "use fp32 or tf32"
            )
        codes_NQ = encode_residual(latents_ND, self._codebooks, self._half_norms_QK).cpu().numpy()
        ends = np.cumsum([len(clip) for clip in clips])[:-1]
        return [codes.astype(np.uint16) for codes in np.split(codes_NQ, ends)]

    def _plan(self, samples: Sequence[int], times: int = 1, *, max_waste: float = MAX_WASTE) -> list[list[int]]:
        budget = round(self._options.batch_s * self.sample_rate_hz) * times
        return plan_batches(samples, max_items=self._options.batch_items, max_total=budget, max_waste=max_waste)


def _as_arrays(clips: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    return [clip.cpu().numpy().copy() for clip in clips]
