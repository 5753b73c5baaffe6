"""Pictures and sounds as data URIs, with the standard library alone: a page that needs no other file."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_bytes(picture: npt.NDArray[np.uint8]) -> bytes:
    """(height, width, 3) uint8 RGB as a PNG file."""
    height, width, channels = picture.shape
    if channels != 3:
        raise ValueError(f"expected an RGB picture (height, width, 3), found {picture.shape}")
    rows = np.ascontiguousarray(picture, np.uint8).reshape(height, width * 3)
    # Filter 2 ("up"): every row as the difference to the one above, which is what makes flat pictures small.
    above = np.vstack([np.zeros((1, width * 3), np.uint8), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 6)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def wav_bytes(sound: npt.NDArray[Any], sample_rate_hz: int) -> bytes:
    """(samples,) float in [-1, 1] as a 16-bit mono WAV file; louder is clipped."""
    pcm = (np.clip(np.asarray(sound, np.float64), -1.0, 1.0) * 32767).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str) -> str:
    """``data:image/png;base64,...``."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
