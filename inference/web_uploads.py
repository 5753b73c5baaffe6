"""Files that a browser sends: what is taken, under which name it is kept, and the sentence that says why not.

A file's name is shown and never used: files are numbered. A name with a folder in it is refused all the same, because no
browser sends one and whoever did should know. What a file is, its content says (:mod:`inference.media_in`).
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from inference.media_in import MediaKind, kind_of_file
from shards.errors import AnyGPTError

_MAX_NAME = 120
_MB = 1_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".wav", ".flac", ".mp3", ".ogg", ".opus")


class Refused(AnyGPTError):
    """What was sent is not taken; the message is for the person who sent it.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was taken.

    Attributes:
        name: as the person knows it.
        path: inside the folder of the session.
    """

    name: str
    path: Path
    kind: MediaKind


def check_name(name: str) -> str:
    """The name of a file, if it is a name and nothing else.

    Raises:
        Refused: 400; empty, too long, with a folder in it or with characters that cannot be seen.
    """
    shown = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in name)[:_MAX_NAME]
    if "/" in name or "\\" in name or name.strip() in {"", ".", ".."}:
        raise Refused(
            400,
            f"“{shown}” is not taken: expected a plain file name such as picture.png, found a path; rename the file",
        )
    if len(name) > _MAX_NAME or shown != name:
        raise Refused(
            400,
            f"“{shown}” is not taken: expected a name of at most {_MAX_NAME} visible characters, found another; "
            "rename the file",
        )
    return name


def known_suffix(name: str) -> str:
    """The suffix of a file's name if it is one of those a browser knows, else none: all of the name that is kept."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _SUFFIXES else ""


def check_size(name: str, size: int, *, max_mb: float) -> None:
    """See that a file is not larger than is taken.

    Raises:
        Refused: 413.
    """
    if size > max_mb * _MB:
        raise Refused(
            413,
            f"“{name}” is not taken: expected at most {max_mb:g} MB, found {size / _MB:.1f} MB; cut it or make it smaller",
        )


async def take_upload(name: str, chunks: AsyncIterator[bytes], path: Path, *, max_mb: float) -> Upload:
    """Write what arrives to ``path`` and see what it is; nothing stays of a file that is refused.

    Raises:
        Refused: 413 if it is too large, however large it was said to be; 415 if it is neither picture nor sound.
    """
    size = 0
    try:
        with path.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                check_size(name, size, max_mb=max_mb)
                file.write(chunk)
        kind = await asyncio.to_thread(kind_of_file, path)
        if kind is None:
            raise Refused(
                415,
                f"“{name}” is not taken: expected a picture (PNG, JPEG, WebP, GIF) or a sound (WAV, FLAC, MP3, Ogg), "
                "found neither in the file",
            )
        return Upload(name, path, kind)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
