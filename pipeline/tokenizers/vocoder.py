"""A robot's voice: pulses where speech is voiced, noise where it is not, shaped by a log-mel envelope.

For codes that say what is spoken and not by whom. The envelope alone has no pitch, and phase reconstruction would
whisper it; a source with a pitch makes vowels of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Wave
from pipeline.tokenizers.spectra import Floats, FrontEnd, hann, istft, stft

_LOWEST_HZ, _HIGHEST_HZ = 70, 400
_VOICED_ABOVE = 0.5  # of the frame's energy is periodic
_AUDIBLE = 1e-3
_PITCH_FRAMES = 11  # over which the pitch is averaged: codes know it roughly
_SOURCE_SEED = 20_240_226


@dataclass(frozen=True, slots=True)
class Voicing:
    """Pitch and voicing, by frame or by code.

    Attributes:
        pitch_hz: (n,) meaningful where voiced.
        share: (n,) in [0, 1], how much of the source is pulses.
    """

    pitch_hz: Floats
    share: Floats


def measure_voicing(wave: Wave, front_end: FrontEnd) -> Voicing:
    """One pitch a frame by autocorrelation; ``share`` is 0 or 1."""
    frames = front_end.frames(wave).astype(np.float64)
    window = hann(front_end.window)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    size = 2 * front_end.window
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, size, axis=1)) ** 2, axis=1)
    ideal = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2)
    lags = np.arange(front_end.sample_rate_hz // _HIGHEST_HZ, front_end.sample_rate_hz // _LOWEST_HZ)
    energy = correlation[:, :1]
    periodic = correlation[:, lags] / np.maximum(energy, 1e-12) * (ideal[0] / ideal[lags])
    # The first lag that is nearly as good as the best one: not its double.
    best = np.argmax(periodic >= 0.9 * periodic.max(axis=1, keepdims=True), axis=1)
    audible = np.sqrt(energy[:, 0] / front_end.window) > _AUDIBLE
    voiced = audible & (periodic.max(axis=1) > _VOICED_ABOVE)
    return Voicing((front_end.sample_rate_hz / lags[best]).astype(np.float32), voiced.astype(np.float32))


def speak(log_mel: Floats, voicing: Voicing, front_end: FrontEnd) -> Wave:
    """(frames * hop,) float32: the source of ``voicing`` with the envelope of ``log_mel``.

    Args:
        log_mel: (frames, bands), half decibels.
        voicing: one value a frame.
    """
    hop, window = front_end.decoder_hop, front_end.window
    num_samples = len(log_mel) * front_end.hop
    begin = window // 2 - hop // 2
    source = _source(voicing, front_end, num_samples + window)
    spectrum = stft(source, window, hop)[: num_samples // hop]
    return istft(spectrum * front_end.upsampled(front_end.magnitudes(log_mel)), window, hop)[
        begin : begin + num_samples
    ]


def _source(voicing: Voicing, front_end: FrontEnd, num_samples: int) -> npt.NDArray[np.float32]:
    """(num_samples,) pulses and noise whose short-time spectrum is about 1 everywhere."""
    positions = np.arange(num_samples) / front_end.hop - 0.5
    frames = np.arange(len(voicing.share))
    share = np.interp(positions, frames, voicing.share)
    pitch = np.interp(positions, frames, _smooth_pitch(voicing))
    turns = np.cumsum(pitch / front_end.sample_rate_hz)
    pulses = np.diff(np.floor(turns), prepend=0.0) * np.sqrt(front_end.sample_rate_hz / pitch)
    noise = np.random.Generator(np.random.PCG64(_SOURCE_SEED)).standard_normal(num_samples)
    power = float((hann(front_end.window) ** 2).sum())
    return ((np.sqrt(share) * pulses + np.sqrt(1 - share) * noise) / np.sqrt(power)).astype(np.float32)


def _smooth_pitch(voicing: Voicing) -> npt.NDArray[np.float64]:
    kernel = np.hanning(_PITCH_FRAMES + 2)
    weight = voicing.share.astype(np.float64) + 1e-3
    inner = slice(len(kernel) // 2, len(kernel) // 2 + len(weight))
    return np.convolve(voicing.pitch_hz * weight, kernel)[inner] / np.convolve(weight, kernel)[inner]
