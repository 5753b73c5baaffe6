"""What the two sound codecs check and draw alike: waves, codes, and rows to fit on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.tokenizers.base import Medium, Wave
from pipeline.tokenizers.spectra import Floats
from shards.vocabulary import Codes


def checked_wave(wave: Medium, name: str) -> Wave:
    """The wave itself.

    Raises:
        ValueError: not (samples,) float32, empty, or not finite.
    """
    if not isinstance(wave, np.ndarray) or wave.ndim != 1 or wave.dtype != np.float32:
        found = f"{wave.shape} {wave.dtype}" if isinstance(wave, np.ndarray) else type(wave).__name__
        raise ValueError(f"{name}: expected a wave (samples,) float32, found {found}")
    if len(wave) == 0:
        raise ValueError(f"{name}: expected at least one sample, found an empty wave")
    if not np.isfinite(wave).all():
        raise ValueError(
            f"{name}: expected finite samples, found NaN or infinity at {int(np.argmin(np.isfinite(wave)))}"
        )
    return wave.astype(np.float32, copy=False)


def checked_codes(codes: Codes, *, levels: int, codebook_size: int, name: str) -> Codes:
    """The codes themselves; fewer levels than the codec has are welcome.

    Raises:
        ValueError: not (frames, 1 ... levels), no frame, or a code outside the codebook.
    """
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= levels or len(codes) == 0:
        raise ValueError(f"{name}: expected codes (frames, 1 to {levels}) with at least one frame, found {codes.shape}")
    if int(codes.max()) >= codebook_size or int(codes.min()) < 0:
        raise ValueError(
            f"{name}: expected codes in [0, {codebook_size}), found {int(codes.min())} to {int(codes.max())}"
        )
    return codes


def chosen_rows(clips: Sequence[Floats], count: int, *, seed: int, key: str) -> Floats:
    """At most ``count`` frames of all clips, chosen by seed and key, in the order of the clips."""
    frames = np.concatenate(clips)
    if len(frames) <= count:
        return frames
    number = int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "little")
    return frames[np.sort(np.random.Generator(np.random.PCG64(number)).permutation(len(frames))[:count])]
