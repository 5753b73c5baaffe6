"""Media and containers as bytes that depend on their content alone.

What would otherwise differ from run to run is fixed: times and owners in tar and gzip headers, and the random serial
number of an Ogg stream, which is written into every page together with the page's checksum.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

Sound = npt.NDArray[np.floating]

# libsndfile sets the bit rate by it: 58 kbit/s, at less than half the time its default of 29 kbit/s takes.
_OPUS_COMPRESSION = 0.8

MTIME_S = 1_690_000_000
"""The time every file in an archive claims to have."""


def jpeg_bytes(picture: Image.Image, quality: int) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def flac_bytes(sound: Sound, sample_rate_hz: int) -> bytes:
    """Mono 16 bit FLAC."""
    return _encode(sound, sample_rate_hz, container="FLAC", coding="PCM_16")


def wav_bytes(sound: Sound, sample_rate_hz: int) -> bytes:
    """Mono 16 bit WAV."""
    return _encode(sound, sample_rate_hz, container="WAV", coding="PCM_16")


def mp3_bytes(sound: Sound, sample_rate_hz: int) -> bytes:
    """Mono MP3; decodes to the same number of samples without a shift."""
    return _encode(sound, sample_rate_hz, container="MP3", coding="MPEG_LAYER_III")


def opus_bytes(sound: Sound, sample_rate_hz: int, *, serial: int) -> bytes:
    """Mono Opus in Ogg, as stream number ``serial``; decodes without a shift."""
    return with_ogg_serial(
        _encode(sound, sample_rate_hz, container="OGG", coding="OPUS", compression=_OPUS_COMPRESSION), serial
    )


def with_ogg_serial(data: bytes, serial: int) -> bytes:
    """The same Ogg stream with its serial number, 32 bits, replaced on every page and the page checksums recomputed.

    Raises:
        ValueError: the bytes are not a sequence of whole Ogg pages.
    """
    pages = bytearray(data)
    start = 0
    while start < len(pages):
        if pages[start : start + 4] != b"OggS":
            raise ValueError(
                f"expected an Ogg page at byte {start} of {len(pages)}, found {bytes(pages[start : start + 4])!r}"
            )
        lacing_stop = start + 27 + pages[start + 26]
        stop = lacing_stop + sum(pages[start + 27 : lacing_stop])
        pages[start + 14 : start + 18] = struct.pack("<I", serial)
        pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = struct.pack("<I", _ogg_checksum(pages[start:stop]))
        start = stop
    return bytes(pages)


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of these (name, content) in order, with the header fields that webdataset's writer sets."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime, header.mode = len(content), MTIME_S, 0o444
            header.uname = header.gname = "bigdata"
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def gzip_bytes(content: bytes) -> bytes:
    """Gzip without name and time."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _encode(
    sound: Sound, sample_rate_hz: int, *, container: str, coding: str, compression: float | None = None
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, sample_rate_hz, format=container, subtype=coding, compression_level=compression)
    return buffer.getvalue()


def _ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 with polynomial 0x04c11db7, neither reflected nor inverted (RFC 3533): not the one of zlib."""
    checksum = 0
    for byte in page:
        checksum = ((checksum << 8) & 0xFFFFFFFF) ^ _OGG_TABLE[(checksum >> 24) ^ byte]
    return checksum


def _ogg_table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        remainder = byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x04C11DB7 if remainder & 0x80000000 else 0)
        table.append(remainder & 0xFFFFFFFF)
    return tuple(table)


_OGG_TABLE = _ogg_table()
