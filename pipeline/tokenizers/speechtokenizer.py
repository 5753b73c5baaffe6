"""SpeechTokenizer (Zhang et al. 2023, arXiv:2308.16692): speech at 50 frames a second, 8 levels of 1,024 codes.

Level 1 is what the language model reads; all 8 are kept at rest. The network is the ``speechtokenizer`` package's. It takes
``config.json`` and a checkpoint as published: flat (``SpeechTokenizer.pt``, AnyGPT's ``ckpt.dev``) or nested by the trainer
under ``generator``, with ELU or with Snake (AnyGPT's own). What the package does not do is done here:

* any number of clips of any lengths in batches by audio seconds, each with the codes it has alone (``ragged``, ``seanet``);
* weight norm folded once, half precision for the encoder if asked for, never for the codebooks (``rvq``);
* a checkpoint whose codebooks were never filled is refused: the package would give zeros for every sound.

In float32 codes are the same alone and in any batch, but for two codes that float32 cannot tell apart; with ``fp16``,
rounding depends on the shape of a batch, and so do the few codes that it changes.

The package's ``encode(st=1)`` quantises the sound, not what level 1 leaves over, and is never used. Decoding walks the
decoder in the same exact way, so clips of different lengths are decoded together too.

Letters: B clips, T the longest length, D latent width, Q levels, K codes of a level.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from speechtokenizer import SpeechTokenizer
from speechtokenizer.modules.seanet import Snake1d
from torch import nn
from torch.nn import functional

from pipeline.tokenizers.base import Medium
from pipeline.tokenizers.batching import MAX_WASTE, plan_batches, run_batches
from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.precision import arithmetic, encoder_dtype
from pipeline.tokenizers.ragged import lengths_after
from pipeline.tokenizers.rvq import decode_residual, encode_residual, half_norms
from pipeline.tokenizers.seanet import fold_weight_norm, split_at_lstm, walk
from pipeline.tokenizers.sounds import checked_codes, checked_wave
from pipeline.tokenizers.weights import (
    CodecOptions,
    choose_device,
    flat_state,
    load_strictly,
    read_state,
    require_file,
    state_fingerprint,
)
from shards.errors import TokenizerError
from shards.modality import Modality
from shards.vocabulary import Codes

Latents = npt.NDArray[np.float32]
"""(frames, D)."""

MODALITY = Modality.SPEECH
CODE_VERSION = 1
_NAME = "speechtokenizer"
_RATE = MODALITY.rate
_NESTED_UNDER = ("generator",)
_BOTH_WAYS = "encode and decode"
_PUBLISHED_AS = "ckpt.dev of fnlp/AnyGPT-speech-modules (or SpeechTokenizer.pt of fnlp/SpeechTokenizer)"
_LSTM_BATCHES = 4
"""The LSTM of the encoder takes so many batches of the convolutions at once."""
_CPU_CONV_S = 4.0
"""On a CPU the convolutions take so much sound at a time: what does not fit its cache is slower, not faster."""


class Options(CodecOptions):
    """Files and batches of SpeechTokenizer."""

    config: Path
    """``config.json`` beside the checkpoint."""
    checkpoint: Path
    """``SpeechTokenizer.pt``, ``ckpt.dev``, or a trainer's ``SpeechTokenizerTrainer_*``."""
    batch_s: float = Field(default=120.0, gt=0.0)
    """At most so many seconds of sound in one pass through the convolutions, padding included."""


class NetworkConfig(BaseModel):
    """The fields of a published ``config.json`` that the network is built from; its training fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_filters: int = Field(ge=1)
    strides: list[int] = Field(min_length=1)
    dimension: int = Field(ge=1)
    semantic_dimension: int = Field(ge=1)
    bidirectional: bool
    dilation_base: int = Field(ge=1)
    residual_kernel_size: int = Field(ge=1)
    n_residual_layers: int = Field(ge=0)
    lstm_layers: int = Field(ge=0)
    activation: Literal["ELU", "Snake"]
    codebook_size: int
    n_q: int
    sample_rate: int


class SpeechTokenizerCodec:
    """Speech codec; implements ``MediaTokenizer`` and ``MediaDetokenizer``."""

    name = _NAME
    modality = MODALITY
    codebook_size = _RATE.codebook_size
    levels = _RATE.levels_at_rest
    sample_rate_hz = _RATE.sample_rate_hz
    frame_rate_hz = _RATE.frame_rate_hz

    def __init__(self, model: nn.Module, options: Options, *, fingerprint: str) -> None:
        """Take over a loaded model, which is changed: folded, and moved to the device.

        Args:
            model: of :func:`load_model`.
        """
        self.fingerprint = fingerprint
        self._options = options
        self._device = choose_device(options.device)
        self._dtype = encoder_dtype(options.precision)
        encoder, decoder = (fold_weight_norm(getattr(model, name)).to(self._device) for name in ("encoder", "decoder"))
        front, self._lstm, self._back = split_at_lstm(list(cast(Any, _in_dtype(encoder, self._dtype)).model))
        self._front: Callable[..., tuple[torch.Tensor, torch.Tensor]] = lambda x, lengths: walk(front, x, lengths)
        if options.compile:
            self._front = torch.compile(self._front, dynamic=True)
        self._decoder = cast(nn.Sequential, decoder.model)
        self._codebooks_QKD = _codebooks(model).to(self._device)
        self._half_norms_QK = half_norms(self._codebooks_QKD)
        # One code more, of nothing: what a clip has no code for adds nothing.
        self._padded_codebooks = functional.pad(self._codebooks_QKD, (0, 0, 0, 1))

    def frames_for(self, num_samples: int) -> int:
        """ceil(num_samples / 320)."""
        return _RATE.frames_for(num_samples)

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(frames, 8) codes per wave of (samples,) float32 at 16 kHz.

        Raises:
            ValueError: wrong shape or dtype, a value that is no number, or an empty sound.
            TokenizerError: the encoder overflowed, which only half precision can.
        """
        return self._encode(batch, self._quantise)

    def latents(self, batch: Sequence[Medium]) -> list[Latents]:
        """(frames, D) float32 per wave: what :meth:`encode` quantises."""
        return self._encode(batch, _as_arrays)

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(frames * 320,) float32 per item, from all levels or from the first ones only.

        Raises:
            ValueError: not (frames, 1 to 8), or a code out of range.
        """
        return self.decode_levels(batch, first_level=0)

    def decode_levels(self, batch: Sequence[Codes], *, first_level: int) -> list[Medium]:
        """As :meth:`decode`, but the codes are of ``first_level`` (from 0) and those above it.

        Raises:
            ValueError: not (frames, 1 to 8 - first_level), or a code out of range.
        """
        items = [
            checked_codes(codes, levels=self.levels - first_level, codebook_size=self.codebook_size, name=self.name)
            for codes in batch
        ]
        samples = [len(codes) * _RATE.samples_per_frame for codes in items]

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
            waves = walk(self._decoder, latents_BDT, frames_B)[0].cpu().numpy()
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

        Convolutions take neighbours in length at a time, for they compute the padding too. The LSTM takes all together: it
        computes no padding, and only many clips at a time make its serial steps pay.
        """
        frames = [self.frames_for(count) for count in samples]
        lengths_B = torch.tensor(samples).to(self._device, non_blocking=True)
        frames_B = lengths_after(lengths_B, _RATE.samples_per_frame)
        parts = self._parts(samples)
        fronts = [self._front(x_B1T[part, :, : samples[part.start]], lengths_B[part])[0] for part in parts]
        hidden_BCT = torch.cat([functional.pad(one, (0, frames[0] - one.shape[-1])) for one in fronts])
        hidden_BCT, _ = walk(self._lstm, hidden_BCT, frames_B)
        latents: list[torch.Tensor] = []
        for part in parts:
            y_BDT, _ = walk(self._back, hidden_BCT[part, :, : frames[part.start]], frames_B[part])
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
        codes_NQ = encode_residual(latents_ND, self._codebooks_QKD, self._half_norms_QK).cpu().numpy()
        ends = np.cumsum([len(clip) for clip in clips])[:-1]
        return [codes.astype(np.uint16) for codes in np.split(codes_NQ, ends)]

    def _plan(self, samples: Sequence[int], times: int = 1, *, max_waste: float = MAX_WASTE) -> list[list[int]]:
        budget = round(self._options.batch_s * self.sample_rate_hz) * times
        return plan_batches(samples, max_items=self._options.batch_items, max_total=budget, max_waste=max_waste)


def weight_files(options: CodecOptions) -> list[WeightFile]:
    """``config.json`` and the checkpoint."""
    assert isinstance(options, Options)
    return [
        WeightFile("config", options.config, _BOTH_WAYS, "config.json of fnlp/AnyGPT-speech-modules"),
        WeightFile("checkpoint", options.checkpoint, _BOTH_WAYS, _PUBLISHED_AS),
    ]


def load(options: CodecOptions) -> SpeechTokenizerCodec:
    """The codec, from the files that the options name.

    Raises:
        ConfigError: no such device.
        TokenizerError: a file that is missing, cut or of another layout, a network that breaks Table 1, or codebooks that
            were never filled.
    """
    assert isinstance(options, Options)
    model, network = load_model(options.config, options.checkpoint)
    facts = {"code_version": CODE_VERSION, "precision": options.precision, "network": network.model_dump()}
    state = {key: tensor for key, tensor in model.state_dict().items() if _decides_codes(key)}
    return SpeechTokenizerCodec(model, options, fingerprint=state_fingerprint(_NAME, facts, state))


def load_detokenizer(options: CodecOptions) -> SpeechTokenizerCodec:
    """The same object as :func:`load`: a codec goes both ways."""
    return load(options)


def load_model(config: Path, checkpoint: Path) -> tuple[nn.Module, NetworkConfig]:
    """The package's network with the weights of a checkpoint, on the CPU, in float32.

    Raises:
        TokenizerError: see :func:`load`.
    """
    network = read_network_config(require_file(config, option="options.config", purpose=f"config.json of {_NAME}"))
    path = require_file(checkpoint, option="options.checkpoint", purpose=_PUBLISHED_AS)
    state = flat_state(read_state(path), path, nested_under=_NESTED_UNDER)
    model = empty_model(network)
    load_strictly(model, state, where=str(path))
    _check_codebooks(model, path)
    return model.eval().float().requires_grad_(False), network


def empty_model(network: NetworkConfig) -> nn.Module:
    """The package's network without values (on ``meta``)."""
    with torch.device("meta"), warnings.catch_warnings():
        # The package's weight norm is of the older kind, as are the published keys.
        warnings.simplefilter("ignore", FutureWarning)
        return SpeechTokenizer(network.model_dump())


def read_network_config(path: Path) -> NetworkConfig:
    """Read a published ``config.json``.

    Raises:
        TokenizerError: no JSON, a field that is missing or of another kind, or codes that break Table 1.
    """
    try:
        network = NetworkConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise TokenizerError(f"{path}: expected the config.json of a SpeechTokenizer, found {faults}") from error
    expected = (_RATE.sample_rate_hz, _RATE.samples_per_frame, _RATE.levels_at_rest, _RATE.codebook_size)
    found = (network.sample_rate, math.prod(network.strides), network.n_q, network.codebook_size)
    if found != expected:
        raise TokenizerError(
            f"{path}: expected sample_rate, product of strides, n_q, codebook_size = {expected}, the speech of the paper's "
            f"Table 1, found {found}; choose the checkpoint that AnyGPT uses"
        )
    return network


def _decides_codes(key: str) -> bool:
    return key.startswith("encoder.") or key.endswith("._codebook.embed")


def _codebook_states(model: nn.Module) -> list[nn.Module]:
    return [layer._codebook for layer in cast(Any, model).quantizer.vq.layers]


def _codebooks(model: nn.Module) -> torch.Tensor:
    """(Q, K, D) float32."""
    return torch.stack([cast(torch.Tensor, one.embed) for one in _codebook_states(model)])


def _check_codebooks(model: nn.Module, path: Path) -> None:
    """Refuse codebooks that training never filled: the package would answer with zeros, or fit them on what it is given."""
    for level, codebook in enumerate(_codebook_states(model), start=1):
        inited, embed = cast(torch.Tensor, codebook.inited), cast(torch.Tensor, codebook.embed)
        if not bool((inited == 1).all()) or not bool(embed.any()) or not bool(embed.isfinite().all()):
            raise TokenizerError(
                f"{path}: expected trained codebooks, found level {level} with inited = {inited.flatten().tolist()} and "
                f"{int(embed.count_nonzero())} of {embed.numel()} values that are not zero; is it a checkpoint from before "
                "training?"
            )


def _in_dtype(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All but the factors of Snake, whose reciprocals half precision cannot hold."""
    for layer in encoder.modules():
        if not isinstance(layer, Snake1d):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return encoder


def _as_arrays(clips: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    return [clip.cpu().numpy().copy() for clip in clips]
