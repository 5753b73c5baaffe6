"""Answers as files: pictures as PNG, sounds as 16-bit WAV, under names that every file system takes.

The released code names files after what was typed, so a slash, a bar or a long sentence ends it (anygpt-compat U-25).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import cast

from pipeline.tokenizers.base import Medium, Picture
from shards.media_files import png_bytes, wav_bytes
from shards.modality import Modality
from shards.writer import commit_bytes

MAX_NAME = 60
"""Characters of a safe name, suffixes not counted; the strictest file systems in use take 143."""
_DIGEST = 16
_SAFE = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_ENDS_LIKE_OURS = re.compile(rf"(?:.*-)?[0-9a-f]{{{_DIGEST}}}")
# Devices of Windows, whatever suffix follows.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def safe_name(text: str, *, unique_by: str = "") -> str:
    """A file name for any text: ASCII, at most :data:`MAX_NAME` characters, no two texts the same one.

    Small letters, digits, ``_`` and ``-`` alone, so it means one file also where case does not count. A short text of
    these stays as it is; any other becomes what is readable of it and a digest of the whole.

    Args:
        unique_by: told apart by this as well: names of equal texts differ where it does.
    """
    if not unique_by and is_safe_name(text) and not _ENDS_LIKE_OURS.fullmatch(text):
        return text
    whole = f"{text}\x1f{unique_by}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(whole, digest_size=_DIGEST // 2).hexdigest()
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    readable = re.sub(r"[^a-z0-9]+", "_", plain)[: MAX_NAME - _DIGEST - 1].strip("_")
    return f"{readable}-{digest}" if readable else f"x-{digest}"


def is_safe_name(name: str) -> bool:
    """Whether a text could be what :func:`safe_name` gives."""
    return len(name) <= MAX_NAME and _SAFE.fullmatch(name) is not None and name not in _RESERVED


def save_medium(
    folder: Path, name: str, modality: Modality, medium: Medium, *, sample_rate_hz: int | None = None
) -> Path:
    """Write a picture as ``NAME.png`` or a sound as ``NAME.wav``, atomically; a file of that name is replaced.

    Args:
        name: made safe if it is not.
        medium: (height, width, 3) uint8, or (samples,) float32.
        sample_rate_hz: of a sound; None: the modality's own.

    Raises:
        ValueError: a text, or no picture.
    """
    if modality.is_sound:
        data, suffix = wav_bytes(medium, sample_rate_hz or modality.rate.sample_rate_hz), ".wav"
    elif modality is Modality.IMAGE:
        data, suffix = png_bytes(cast(Picture, medium)), ".png"
    else:
        raise ValueError(f"expected a picture or a sound, found {modality}")
    path = folder / f"{name if is_safe_name(name) else safe_name(name)}{suffix}"
    commit_bytes(path, data)
    return path
