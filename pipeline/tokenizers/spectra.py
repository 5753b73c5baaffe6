"""Sound as whole numbers and back: log-mel frames in half decibels, and a wave from log-mel by phase reconstruction.

A frame is centred on its hop, so a sound of ``n`` samples has exactly ``ceil(n / hop)`` frames. Bands are rounded to
half decibels above a floor. The codebooks of :mod:`pipeline.tokenizers.kmeans` are whole numbers too, and with small
whole numbers float32 sums are exact in any order: codes do not depend on threads, batches or the BLAS at hand. (The
analysis itself runs in float64 without BLAS.)

The way back: bands to bins by Richardson-Lucy steps (non-negative and sharper than a pseudo-inverse), frames
interpolated to an eighth of the window, phases of the peaks carried on from frame to frame (Beauregard et al. 2015,
"Single pass spectrogram inversion"), then fast Griffin-Lim (Perraudin, Balazs and Søndergaard 2013).
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Wave

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

STEPS_PER_DB = 2
FLOOR_DB = -60.0
"""What is quieter than this (0 dB: a full-scale sine) fades into the floor and comes back as silence."""

TOP_STEP = 140
"""No band is above; 10 dB over full scale. Squared distances over 192 bands stay below 2**24: exact in float32."""

_OVERLAP = 8  # decoder frames that see one sample
_SHARPENING_STEPS = 12
_MOMENTUM = 0.99
_TINY = 1e-9
# A longer sound is analysed in pieces: bounded memory, and the same pieces whatever the batch.
_PIECE = 512


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Every choice that decides the frames of a sound; part of a codec's fingerprint."""

    sample_rate_hz: int
    hop: int
    window: int
    num_bands: int

    def facts(self) -> dict[str, Any]:
        """Plain data for the fingerprint and the file's metadata."""
        return {**asdict(self), "steps_per_db": STEPS_PER_DB, "floor_db": FLOOR_DB}

    @property
    def decoder_hop(self) -> int:
        """Samples between the frames of the way back; divides the hop and the window."""
        return self.window // _OVERLAP

    def frames_for(self, num_samples: int) -> int:
        """ceil(num_samples / hop)."""
        return -(-num_samples // self.hop)

    def log_mel(self, wave: Wave) -> Floats:
        """(frames, num_bands) whole numbers: half decibels above the floor, in [0, 140].

        Args:
            wave: (samples,) in [-1, 1], at least one sample.
        """
        frames = self.frames(wave)
        pieces = [self._analyse(frames[start : start + _PIECE]) for start in range(0, len(frames), _PIECE)]
        return np.concatenate(pieces)

    def wave_from_log_mel(self, log_mel: Floats, *, iterations: int) -> Wave:
        """(frames * hop,) float32 whose log-mel is close to the one given; the same input gives the same wave."""
        magnitudes = self.upsampled(self.magnitudes(log_mel))
        return griffin_lim(magnitudes, self.window, self.decoder_hop, len(log_mel) * self.hop, iterations)

    def magnitudes(self, log_mel: Floats) -> Floats:
        """(frames, window // 2 + 1) non-negative amplitudes of the bins that explain the bands."""
        bank = mel_bank(self.sample_rate_hz, self.window, self.num_bands).astype(np.float32)
        floor = 10 ** (FLOOR_DB / 20)
        bands = np.maximum(10 ** (log_mel / (20 * STEPS_PER_DB) + FLOOR_DB / 20) - floor, 0).astype(np.float32)
        weight = np.maximum(bank.sum(axis=1), _TINY)
        bins = (bands @ bank.T) / weight + np.float32(_TINY)
        for _ in range(_SHARPENING_STEPS):
            bins *= (bands / np.maximum(bins @ bank, _TINY)) @ bank.T / weight
        return bins * np.float32(self.window / 4)

    def upsampled(self, magnitudes: Floats) -> Floats:
        """(frames, bins) -> one row per ``decoder_hop``: geometric interpolation between the centres of frames."""
        factor = self.hop // self.decoder_hop
        position = np.clip((np.arange(len(magnitudes) * factor) + 0.5) / factor - 0.5, 0, len(magnitudes) - 1)
        low = np.minimum(position.astype(int), max(len(magnitudes) - 2, 0))
        high = np.minimum(low + 1, len(magnitudes) - 1)
        share = (position - low)[:, None].astype(np.float32)
        log = np.log(magnitudes + np.float32(1e-5))
        return np.exp(log[low] * (1 - share) + log[high] * share)

    def frames(self, wave: Wave) -> npt.NDArray[np.float32]:
        """(frames, window) view; the ends are mirrored, since real clips begin and end in the middle of a sound."""
        num_frames = self.frames_for(len(wave))
        before = (self.window - self.hop) // 2
        after = (num_frames - 1) * self.hop + self.window - before - len(wave)
        mode = "symmetric" if len(wave) > 1 else "edge"
        padded = np.pad(np.asarray(wave, np.float32), (before, after), mode=mode)
        return np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]

    def _analyse(self, frames: npt.NDArray[np.float32]) -> Floats:
        spectrum = np.abs(np.fft.rfft(frames * hann(self.window), axis=1)) * (4.0 / self.window)
        bank = mel_bank(self.sample_rate_hz, self.window, self.num_bands)
        bands = _banded_product(spectrum, bank)
        level_db = 20 * np.log10(bands + 10 ** (FLOOR_DB / 20)) - FLOOR_DB
        return np.clip(np.rint(level_db * STEPS_PER_DB), 0, TOP_STEP).astype(np.float32)


@functools.cache
def hann(window: int) -> Doubles:
    """Periodic Hann window (window,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


@functools.cache
def mel_bank(sample_rate_hz: int, window: int, num_bands: int) -> Doubles:
    """(bins, bands) triangles equally spaced in mel (HTK) up to half the sample rate, each summing to one or less.

    A triangle is never narrower than a bin to either side, so that no low band is empty and none skips a bin.
    """
    bin_hz = sample_rate_hz / window
    frequency = np.arange(window // 2 + 1) * bin_hz
    top_mel = 2595 * np.log10(1 + sample_rate_hz / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top_mel, num_bands + 2) / 2595) - 1)
    centre = corners[1:-1]
    below = np.maximum(centre - corners[:-2], bin_hz)
    above = np.maximum(corners[2:] - centre, bin_hz)
    offset = frequency[:, None] - centre
    bank = np.clip(1 - np.where(offset < 0, -offset / below, offset / above), 0, None)
    # A pure tone reads the same in a wide band as in a narrow one; noise reads as its average.
    return bank / np.maximum(bank.sum(axis=0), 1)


def griffin_lim(magnitudes: Floats, window: int, hop: int, num_samples: int, iterations: int) -> Wave:
    """(num_samples,) wave whose short-time magnitudes approach those given.

    Args:
        magnitudes: (frames, window // 2 + 1); frame ``t`` is centred on sample ``(t + 0.5) * hop``.
        hop: divides ``window``.
    """
    spectrum = magnitudes * np.exp(1j * coherent_phases(magnitudes, hop, window)).astype(np.complex64)
    previous = np.zeros_like(spectrum)
    for _ in range(iterations):
        rebuilt = stft(istft(spectrum, window, hop), window, hop)
        ahead = rebuilt + np.float32(_MOMENTUM) * (rebuilt - previous)
        spectrum = magnitudes * (ahead / np.maximum(np.abs(ahead), np.float32(_TINY)))
        previous = rebuilt
    begin = window // 2 - hop // 2
    return istft(spectrum, window, hop)[begin : begin + num_samples].astype(np.float32)


def coherent_phases(magnitudes: Floats, hop: int, window: int) -> Doubles:
    """(frames, bins) phases in which every spectral peak goes on as a sine from frame to frame."""
    phases = np.zeros(magnitudes.shape)
    alternating = np.pi * (np.arange(magnitudes.shape[1]) % 2)
    now = np.zeros(magnitudes.shape[1])
    for frame, magnitude in enumerate(magnitudes):
        inner = magnitude[1:-1]
        peaks = 1 + np.flatnonzero((inner >= magnitude[:-2]) & (inner > magnitude[2:]))
        if len(peaks):
            left, centre, right = (magnitude[peaks + shift].astype(np.float64) for shift in (-1, 0, 1))
            offset = 0.5 * (left - right) / np.minimum(left - 2 * centre + right, -_TINY)
            advanced = now[peaks] + 2 * np.pi * (peaks + np.clip(offset, -0.5, 0.5)) * hop / window
            owner = np.searchsorted((peaks[:-1] + peaks[1:]) / 2, np.arange(len(magnitude)))
            now = np.mod(advanced, 2 * np.pi)[owner]
        # The phase of a sine at the window's centre alternates from bin to bin when seen from the window's start.
        phases[frame] = now + alternating
    return phases


def stft(wave: Floats, window: int, hop: int) -> npt.NDArray[np.complex64]:
    """(frames, bins) of a periodic Hann window every ``hop`` samples."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    return np.fft.rfft(frames * hann(window).astype(np.float32), axis=1).astype(np.complex64, copy=False)


def istft(spectrum: npt.NDArray[np.complex64], window: int, hop: int) -> Floats:
    """Least-squares overlap-add: (frames - 1) * hop + window samples."""
    shape = hann(window).astype(np.float32)
    frames = np.fft.irfft(spectrum, n=window, axis=1).astype(np.float32, copy=False) * shape
    wave = _overlap_add(frames, hop)
    weight = _overlap_add(np.broadcast_to(shape * shape, frames.shape), hop)
    # The outermost samples are seen by the feet of a few windows only.
    return (wave / np.maximum(weight, 0.1)).astype(np.float32, copy=False)


def _overlap_add(frames: Floats, hop: int) -> Floats:
    num_frames, window = frames.shape
    ratio = window // hop
    total = np.zeros((num_frames + ratio - 1, hop), np.float32)
    for part in range(ratio):
        total[part : part + num_frames] += frames[:, part * hop : (part + 1) * hop]
    return total.reshape(-1)


def _banded_product(spectrum: Doubles, bank: Doubles) -> Doubles:
    """``spectrum @ bank`` by bands of few bins each, in a fixed order of summation (BLAS may choose another)."""
    columns = [
        np.add.reduce(spectrum[:, first:stop] * bank[first:stop, band], axis=1)
        for band, (first, stop) in enumerate(_extents(bank.shape, bank.tobytes()))
    ]
    return np.stack(columns, axis=1)


@functools.lru_cache(maxsize=8)
def _extents(shape: tuple[int, ...], data: bytes) -> tuple[tuple[int, int], ...]:
    bank = np.frombuffer(data).reshape(shape)
    used = [np.flatnonzero(column) for column in bank.T]
    return tuple((int(bins[0]), int(bins[-1]) + 1) for bins in used)
