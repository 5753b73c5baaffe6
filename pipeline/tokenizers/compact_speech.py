"""``compact`` speech: 16 kHz, 50 frames a second, level 1 for the words and seven levels for the rest of the sound.

Level 1 is what the language model reads and writes. It is looked up by *content*: the lowest 14 quefrencies of the
log-mel frame (the shape of the mouth, hardly the pitch of the voice), loudness at a third of its weight, smoothed over
three frames. Its codebook is a cover if 1,024 codes can tell the frames apart, k-means if not, and its codes are steady,
as in :mod:`pipeline.tokenizers.compact_music`, so that a vowel is one code said a few times.

What level 1 decodes to is another table: the mean log-mel, pitch and voicing of the frames that carry the code. From level
1 alone, :mod:`pipeline.tokenizers.vocoder` makes a plain, robotic voice of it. Levels 2 to 8 add to the log-mel what the
table lacks, the harmonics of this voice included, and phases are reconstructed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Medium, Wave
from pipeline.tokenizers.kmeans import (
    NEAREST,
    Floats,
    Indices,
    Thrift,
    centroids,
    decode_residual,
    encode_residual,
    fit_cover,
    fit_kmeans,
    live,
    nearest,
    steady,
)
from pipeline.tokenizers.sounds import checked_codes, checked_wave, chosen_rows
from pipeline.tokenizers.spectra import Doubles, FrontEnd
from pipeline.tokenizers.vocoder import Voicing, measure_voicing, speak
from shards.vocabulary import Codes, Modality

CODE_VERSION = 1
CODEBOOK_SIZE = 1024
LEVELS = 8
FRONT_END = FrontEnd(sample_rate_hz=16_000, hop=320, window=640, num_bands=80)
NUM_QUEFRENCIES = 14
LOUDNESS_WEIGHT = 0.3
COVER_RADIUS = 12.0  # RMS over the content features, in the half decibels of the orthonormal cosine transform
SWITCH_DISTANCE = 8.0

_ITERATIONS = 16  # of Griffin-Lim
_FIT_FRAMES = 12_000
_FIT_ITERATIONS = 6
_STEADY = Thrift(switch=round(NUM_QUEFRENCIES * SWITCH_DISTANCE**2))
FACTS = FRONT_END.facts() | {
    "num_quefrencies": NUM_QUEFRENCIES,
    "loudness_weight": LOUDNESS_WEIGHT,
    "switch": _STEADY.switch,
}
"""All that decides a code besides the tensors and the code itself."""
SHAPES = {
    "content": (CODEBOOK_SIZE, NUM_QUEFRENCIES),
    "log_mel": (CODEBOOK_SIZE, FRONT_END.num_bands),
    "pitch_hz": (CODEBOOK_SIZE,),
    "voiced_percent": (CODEBOOK_SIZE,),
} | {f"level{level}": (CODEBOOK_SIZE, FRONT_END.num_bands) for level in range(2, LEVELS + 1)}
"""Tensors by name, all int16."""


class CompactSpeech:
    """Speech codec; implements ``MediaTokenizer`` and ``MediaDetokenizer``."""

    name = "compact-speech"
    modality = Modality.SPEECH
    codebook_size = CODEBOOK_SIZE
    levels = LEVELS
    sample_rate_hz = FRONT_END.sample_rate_hz
    frame_rate_hz = FRONT_END.sample_rate_hz / FRONT_END.hop

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], fingerprint: str = "") -> None:
        self._live_content = live(tensors["content"].astype(np.float32))
        self._log_mel = tensors["log_mel"].astype(np.float32)
        self._voicing = Voicing(
            tensors["pitch_hz"].astype(np.float32), tensors["voiced_percent"].astype(np.float32) / np.float32(100)
        )
        self._residuals = [tensors[f"level{level}"].astype(np.float32) for level in range(2, LEVELS + 1)]
        self.fingerprint = fingerprint

    def frames_for(self, num_samples: int) -> int:
        """ceil(num_samples / 320)."""
        return FRONT_END.frames_for(num_samples)

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(frames, 8) codes per wave of (samples,) float32.

        Raises:
            ValueError: wrong shape or dtype, a value that is no number, or an empty sound.
        """
        return [self._encode_one(checked_wave(wave, self.name)) for wave in batch]

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(frames * 320,) float32 per item: a robot from level 1 alone, the voice itself from more levels.

        Raises:
            ValueError: not (frames, 1 to 8), or a code out of range.
        """
        items = [checked_codes(codes, levels=LEVELS, codebook_size=CODEBOOK_SIZE, name=self.name) for codes in batch]
        return [self._decode_one(codes) for codes in items]

    def _encode_one(self, wave: Wave) -> Codes:
        log_mel = FRONT_END.log_mel(wave)
        words = steady(content_features(log_mel), self._live_content, _STEADY)
        rest = encode_residual(log_mel - self._log_mel[words], self._residuals, thrift=[NEAREST] * (LEVELS - 1))
        return np.concatenate([words[:, None].astype(np.uint16), rest], axis=1)

    def _decode_one(self, codes: Codes) -> Wave:
        words = codes[:, 0]
        if codes.shape[1] == 1:
            voicing = Voicing(self._voicing.pitch_hz[words], self._voicing.share[words])
            return speak(self._log_mel[words], voicing, FRONT_END)
        log_mel = self._log_mel[words] + decode_residual(codes[:, 1:], self._residuals)
        return FRONT_END.wave_from_log_mel(log_mel, iterations=_ITERATIONS)


def content_features(log_mel: Floats) -> Floats:
    """(frames, 14) whole numbers: loudness and the lowest quefrencies, smoothed over three frames.

    Args:
        log_mel: (frames, 80), half decibels.
    """
    # A plain sum: BLAS may add in another order on another machine.
    cepstrum = np.stack([(log_mel * wave).sum(axis=1) for wave in _quefrencies()], axis=1)
    padded = np.pad(cepstrum, ((1, 1), (0, 0)), mode="edge")
    return np.rint((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).astype(np.float32)


@functools.cache
def _quefrencies() -> Doubles:
    """(14, 80) orthonormal cosines, the constant one at the weight of loudness."""
    bands = FRONT_END.num_bands
    cosines = np.cos(np.pi * np.outer(np.arange(NUM_QUEFRENCIES), np.arange(bands) + 0.5) / bands) * np.sqrt(2 / bands)
    cosines[0] *= LOUDNESS_WEIGHT / np.sqrt(2)
    return cosines


def fit_speech(waves: Sequence[Wave], *, seed: int) -> dict[str, npt.NDArray[np.int16]]:
    """Fit all tables; the same waves in the same order and the same seed give the same tensors.

    Args:
        waves: (samples,) float32 at 16 kHz.
    """
    clips = [FRONT_END.log_mel(checked_wave(wave, CompactSpeech.name)) for wave in waves]
    features = [content_features(clip) for clip in clips]
    content = _fit_content(chosen_rows(features, _FIT_FRAMES, seed=seed, key="content"), seed)
    words = [steady(one, live(content), _STEADY) for one in features]
    table = centroids(np.concatenate(clips), np.concatenate(words), CODEBOOK_SIZE)[0]
    voicing = _fit_voicing([measure_voicing(wave, FRONT_END) for wave in waves], np.concatenate(words))
    tensors = {
        "content": content,
        "log_mel": table,
        "pitch_hz": np.rint(voicing.pitch_hz),
        "voiced_percent": np.rint(voicing.share * 100),
    }
    rest = [clip - table[codes] for clip, codes in zip(clips, words, strict=True)]
    rows = chosen_rows(rest, _FIT_FRAMES, seed=seed, key="residual")
    for level in range(2, LEVELS + 1):
        entries = fit_kmeans(rows, CODEBOOK_SIZE, seed=seed, iterations=_FIT_ITERATIONS)
        tensors[f"level{level}"] = entries
        rows = rows - entries[nearest(rows, entries)]
    return {name: tensor.astype(np.int16) for name, tensor in tensors.items()}


def _fit_content(rows: Floats, seed: int) -> Floats:
    cover = fit_cover(rows, CODEBOOK_SIZE - 1, radius=COVER_RADIUS)
    if cover is None:
        return fit_kmeans(rows, CODEBOOK_SIZE, seed=seed, iterations=_FIT_ITERATIONS)
    entries = np.zeros((CODEBOOK_SIZE, rows.shape[1]), np.float32)
    entries[: len(cover)] = centroids(rows, nearest(rows, cover), len(cover))[0]
    return entries


def _fit_voicing(clips: Sequence[Voicing], words: Indices) -> Voicing:
    """Share of voiced frames and their mean pitch, by code; the pitch of all speech where a code has none."""
    share = np.concatenate([clip.share for clip in clips]).astype(np.float64)
    pitch = np.concatenate([clip.pitch_hz for clip in clips])
    weight = np.bincount(words, weights=share, minlength=CODEBOOK_SIZE)
    count = np.bincount(words, minlength=CODEBOOK_SIZE)
    total = np.bincount(words, weights=share * pitch, minlength=CODEBOOK_SIZE)
    overall = float((share * pitch).sum() / max(share.sum(), 1e-6)) or 120.0
    mean = np.where(weight > 0.5, total / np.maximum(weight, 1e-6), overall)
    return Voicing(mean.astype(np.float32), (weight / np.maximum(count, 1)).astype(np.float32))
