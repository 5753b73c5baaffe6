"""Made-up media to try a codec on: coloured shapes, something like a voice, a few notes, noise with a sweep.

They are drawn by formula from nothing but their number, so that a report can be compared with another machine's. They are
no measure of quality: they show that a codec runs, at the right rate, and says the same alone and in a batch.
"""

from __future__ import annotations

import numpy as np

from pipeline.tokenizers.base import Medium, Picture, Wave
from shards.modality import Modality

DURATIONS_S = (3.0, 1.7, 0.615)
"""Of the three sounds: a batch of unequal lengths, the last one not a whole number of frames."""
_SIDE = 224
_PEAK = 0.7


def made_up_media(modality: Modality) -> list[Medium]:
    """Three pictures, or three sounds of :data:`DURATIONS_S`.

    Raises:
        ValueError: for text, which has no codec.
    """
    if modality.is_sound:
        return [made_up_sound(modality, number) for number in range(len(DURATIONS_S))]
    if modality is Modality.IMAGE:
        return [made_up_picture(number) for number in range(len(DURATIONS_S))]
    raise ValueError(f"{modality}: expected a medium, found none that can be made up")


def made_up_picture(number: int) -> Picture:
    """(224, 224, 3) uint8: a disc, a square and a stripe before a shaded background."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    shade = 0.5 + 0.5 * np.cos(
        2.0 * np.pi * (x[..., None] * (number + 1) / 3 + np.array([0.0, 0.33, 0.67]) + y[..., None])
    )
    picture = 60.0 + 120.0 * shade
    disc = (x - 0.3 - 0.1 * number) ** 2 + (y - 0.35) ** 2 < 0.04
    square = (np.abs(x - 0.7) < 0.13) & (np.abs(y - 0.6 - 0.05 * number) < 0.13)
    stripe = np.abs(x + y - 1.0 - 0.2 * number) < 0.04
    for mask, colour in ((disc, (220, 40, 40)), (square, (30, 70, 210)), (stripe, (240, 210, 40))):
        picture[mask] = np.roll(colour, number)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def made_up_sound(modality: Modality, number: int) -> Wave:
    """(samples,) float32 in [-0.7, 0.7] at the modality's sample rate."""
    rate_hz = modality.rate.sample_rate_hz
    time_s = np.arange(round(DURATIONS_S[number] * rate_hz)) / rate_hz
    make = {Modality.SPEECH: _voice, Modality.MUSIC: _notes}.get(modality, _noises)
    wave = make(time_s, number)
    return (wave * (_PEAK / max(float(np.abs(wave).max()), 1e-9))).astype(np.float32)


def _voice(time_s: np.ndarray, number: int) -> np.ndarray:
    """Harmonics of a gliding pitch under two moving formants, four syllables a second."""
    pitch_hz = (110.0 + 35.0 * number) * (1.0 + 0.15 * np.sin(2.0 * np.pi * 0.7 * time_s))
    phase = 2.0 * np.pi * np.cumsum(pitch_hz) * (time_s[1] if len(time_s) > 1 else 0.0)
    formants_hz = (
        500.0 + 250.0 * np.sin(2.0 * np.pi * 1.3 * time_s),
        1500.0 + 500.0 * np.cos(2.0 * np.pi * 0.9 * time_s),
    )
    wave = np.zeros_like(time_s)
    for harmonic in range(1, 25):
        distances = [np.abs(harmonic * pitch_hz - formant) for formant in formants_hz]
        wave += sum(np.exp(-distance / 150.0) for distance in distances) * np.sin(harmonic * phase)
    return wave * (0.1 + np.clip(np.sin(2.0 * np.pi * 4.0 * time_s), 0.0, None))


def _notes(time_s: np.ndarray, number: int) -> np.ndarray:
    """A broken chord, four notes a second, each dying away."""
    steps = np.array([0, 4, 7, 12, 7, 4])[(time_s * 4.0).astype(int) % 6] + 3 * number
    pitch_hz = 220.0 * 2.0 ** (steps / 12.0)
    since_s = time_s % 0.25
    tones = sum(np.sin(2.0 * np.pi * k * pitch_hz * since_s) / k for k in (1, 2, 3, 5))
    return np.asarray(tones * np.exp(-6.0 * since_s))


def _noises(time_s: np.ndarray, number: int) -> np.ndarray:
    """A rising sweep with bursts of noise over it."""
    sweep = np.sin(2.0 * np.pi * (200.0 * time_s + 600.0 * (number + 1) * time_s**2))
    noise = np.random.Generator(np.random.PCG64(number)).standard_normal(len(time_s))
    return 0.6 * sweep + 0.3 * noise * (np.sin(2.0 * np.pi * 3.0 * time_s) > 0.5)
