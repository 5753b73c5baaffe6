"""``compact`` music: 32 kHz mono, 50 frames a second, four residual levels of 2,048 whole-number log-mel spectra.

Windows of 80 ms and 192 bands tell the pitches apart; the front end and the way back are :mod:`pipeline.tokenizers.spectra`.
The language model reads all four levels, so they are made to be learned and not only to be close:

* Level 1 is a cover: a spectrum becomes an entry only if none lies within 4 dB (RMS over the bands). A note of one
  instrument is then one code or a few along its decay, in whichever clip; k-means would split it into dozens. Music too
  rich for a cover of 2,048 gets k-means.
* Codes are steady (:func:`pipeline.tokenizers.kmeans.steady`): a change must repay its cost over the frames it
  holds for. A note that goes on repeats its code, and the blur between two notes is no code of its own.
* Entry 0 of every further level adds nothing, and is taken unless another brings the frame closer by a price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Medium, Wave
from pipeline.tokenizers.kmeans import (
    Floats,
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
from pipeline.tokenizers.spectra import STEPS_PER_DB, FrontEnd
from shards.vocabulary import Codes, Modality

CODE_VERSION = 1
CODEBOOK_SIZE = 2048
LEVELS = 4
FRONT_END = FrontEnd(sample_rate_hz=32_000, hop=640, window=2560, num_bands=192)
COVER_RADIUS_DB = 4.0
SWITCH_DB = (4.0, 2.0)
"""A change of code costs what one frame this far off (RMS over the bands) costs: at level 1, at the others."""
USE_DB = 1.5
"""Level 2, 3 or 4 says something only of a frame that is at least this far off without it."""

_ITERATIONS = 12  # of Griffin-Lim
_FIT_FRAMES = 20_000
_FIT_ITERATIONS = 8
_FRAMES_PER_ENTRY = 4  # an entry of fewer frames is a memory, not a rule


def _price(db: float) -> int:
    """Squared distance of a frame that is off by this much, RMS over the bands."""
    return round(FRONT_END.num_bands * (STEPS_PER_DB * db) ** 2)


_USE = _price(USE_DB)
_THRIFT = (Thrift(_price(SWITCH_DB[0])), *[Thrift(_price(SWITCH_DB[1]), _USE)] * (LEVELS - 1))
FACTS = FRONT_END.facts() | {"thrift": [[thrift.switch, thrift.use] for thrift in _THRIFT]}
"""All that decides a code besides the tensors and the code itself."""
SHAPES = {f"level{level}": (CODEBOOK_SIZE, FRONT_END.num_bands) for level in range(1, LEVELS + 1)}
"""Tensors by name, all int16."""


class CompactMusic:
    """Music codec; implements ``MediaTokenizer`` and ``MediaDetokenizer``."""

    name = "compact-music"
    modality = Modality.MUSIC
    codebook_size = CODEBOOK_SIZE
    levels = LEVELS
    sample_rate_hz = FRONT_END.sample_rate_hz
    frame_rate_hz = FRONT_END.sample_rate_hz / FRONT_END.hop

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], fingerprint: str = "") -> None:
        self._codebooks = [tensors[f"level{level}"].astype(np.float32) for level in range(1, LEVELS + 1)]
        self._live = [live(entries) for entries in self._codebooks]
        self.fingerprint = fingerprint

    def frames_for(self, num_samples: int) -> int:
        """ceil(num_samples / 640)."""
        return FRONT_END.frames_for(num_samples)

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(frames, 4) codes per wave of (samples,) float32.

        Raises:
            ValueError: wrong shape or dtype, a value that is no number, or an empty sound.
        """
        waves = [checked_wave(wave, self.name) for wave in batch]
        return [encode_residual(FRONT_END.log_mel(wave), self._live, thrift=_THRIFT) for wave in waves]

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(frames * 640,) float32 per item.

        Raises:
            ValueError: not (frames, 1 to 4), or a code out of range.
        """
        items = [checked_codes(codes, levels=LEVELS, codebook_size=CODEBOOK_SIZE, name=self.name) for codes in batch]
        return [self._decode_one(codes) for codes in items]

    def _decode_one(self, codes: Codes) -> Wave:
        return FRONT_END.wave_from_log_mel(decode_residual(codes, self._codebooks), iterations=_ITERATIONS)


def fit_music(waves: Sequence[Wave], *, seed: int) -> dict[str, npt.NDArray[np.int16]]:
    """Fit the four codebooks; the same waves in the same order and the same seed give the same tensors.

    Args:
        waves: (samples,) float32 at 32 kHz.
    """
    clips = [FRONT_END.log_mel(checked_wave(wave, CompactMusic.name)) for wave in waves]
    tensors: dict[str, npt.NDArray[np.int16]] = {}
    for level, thrift in enumerate(_THRIFT, start=1):
        rows = chosen_rows(clips, _FIT_FRAMES, seed=seed, key=f"music{level}")
        entries = _first_level(rows, seed) if level == 1 else _further_level(rows, seed)
        tensors[f"level{level}"] = entries.astype(np.int16)
        clips = [clip - entries[steady(clip, live(entries), thrift)] for clip in clips]
    return tensors


def _first_level(rows: Floats, seed: int) -> Floats:
    """The cover, filled up with silence; or k-means where too much is to be told apart."""
    cover = fit_cover(rows, CODEBOOK_SIZE - 1, radius=STEPS_PER_DB * COVER_RADIUS_DB)
    if cover is None:
        return fit_kmeans(rows, CODEBOOK_SIZE, seed=seed, iterations=_FIT_ITERATIONS)
    entries = np.zeros((CODEBOOK_SIZE, rows.shape[1]), np.float32)
    entries[: len(cover)] = centroids(rows, nearest(rows, cover), len(cover))[0]
    return entries


def _further_level(rows: Floats, seed: int) -> Floats:
    """Entry 0 is nothing; the others stand for the frames that have enough left to say."""
    entries = np.zeros((CODEBOOK_SIZE, rows.shape[1]), np.float32)
    rows = rows[(rows * rows).sum(axis=1) > _USE]
    used = min(CODEBOOK_SIZE - 1, len(rows) // _FRAMES_PER_ENTRY)
    entries[1 : used + 1] = fit_kmeans(rows, used, seed=seed, iterations=_FIT_ITERATIONS)
    return entries
