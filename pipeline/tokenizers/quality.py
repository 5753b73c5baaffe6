"""How close a decoded medium is to the truth, in figures that do not depend on the codec that made it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Picture, Wave
from pipeline.tokenizers.spectra import STEPS_PER_DB, FrontEnd

_HOP_S = 0.01
_WINDOW_S = 0.032
_NUM_BANDS = 80


def log_mel_distance(a: Wave, b: Wave, sample_rate_hz: int) -> float:
    """Mean absolute difference of two log-mel spectrograms, in dB.

    80 mel bands, windows of 32 ms every 10 ms, 60 dB of range below full scale; the longer sound is cut to the
    shorter. 0 is the same sound; the codecs' own analysis is another one.

    Raises:
        ValueError: if either sound is empty.
    """
    length = min(len(a), len(b))
    if length == 0:
        raise ValueError("log_mel_distance: expected two sounds, found an empty one")
    front_end = FrontEnd(sample_rate_hz, round(_HOP_S * sample_rate_hz), round(_WINDOW_S * sample_rate_hz), _NUM_BANDS)
    difference = front_end.log_mel(a[:length]) - front_end.log_mel(b[:length])
    return float(np.abs(difference).mean()) / STEPS_PER_DB


def psnr_db(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures; infinite for equal ones.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr_db: expected two pictures of one shape, found {a.shape} and {b.shape}")
    error: npt.NDArray[np.floating[Any]] = a.astype(np.float64) - b.astype(np.float64)
    mean_square = float((error**2).mean())
    return float("inf") if mean_square == 0 else float(10 * np.log10(255.0**2 / mean_square))
