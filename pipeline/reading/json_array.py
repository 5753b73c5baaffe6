"""One array of a JSON file that is too large to be parsed at once: its elements one at a time, in bounded memory.

GigaSpeech keeps 38,000 recordings with all their segments in one file of gigabytes. A first pass notes where each
element lies; later an element is read alone. A file that is cut gives everything before the cut.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 22
_DECODER = json.JSONDecoder()
_GAP = re.compile(r"[\s,]*")
_BETWEEN = re.compile(r"\}\s*,\s*(?=\{)")
# Also the largest element; a recording of a day has some thousand segments, below a megabyte.
_MAX_BUFFER = 1 << 28


@dataclass(frozen=True, slots=True)
class Element:
    """One element, or the place where the array ends too early.

    Attributes:
        offset, num_bytes: where it lies in the file.
        value: parsed; None if there is a problem.
        problem: ``file_empty``, ``file_truncated`` (the element at the cut), ``json_invalid`` (one that others follow),
            ``metadata_malformed`` (no such array); else empty.
    """

    offset: int
    num_bytes: int
    value: Any
    problem: str = ""


def iter_array(path: Path, key: str, *, element_key: str = "") -> Iterator[Element]:
    """Elements of the array under ``key``, in file order.

    Args:
        element_key: a key that every element has and nothing inside an element; if given, reading goes on behind an
            element that is no JSON, which is one problem (``json_invalid``).

    The first ``"key":`` of the file is taken, so the array must come before any nested object with the same key.
    """
    if not path.stat().st_size:
        yield Element(0, 0, None, "file_empty")
        return
    with path.open("rb") as file:
        window = _Window(file)
        opening = re.compile(rf'"{re.escape(key)}"\s*:\s*(\[?)')
        match = opening.search(window.text)
        # A match at the very end of the window may go on in what is not read yet.
        while (match is None or match.end() == len(window.text)) and window.grow():
            match = opening.search(window.text)
        if match is None or not match[1]:
            yield Element(0, 0, None, "metadata_malformed")
            return
        window.drop(match.end())
        yield from _elements(window, element_key)


def read_element(path: Path, offset: int, num_bytes: int) -> Any:
    """An element that :func:`iter_array` found."""
    # As the first pass decoded it; a text with a wrong byte is refused where it is used.
    return json.loads(read_bytes(path, offset, num_bytes).decode("utf-8", errors="surrogateescape"))


def read_bytes(path: Path, offset: int, num_bytes: int) -> bytes:
    """A piece of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(num_bytes)


def recover_cut_object(data: bytes, key: str) -> tuple[dict[str, Any], list[Any]]:
    """What is whole in an object whose end is missing.

    Args:
        data: its bytes up to the cut.
        key: of the array in which the cut lies, the last key of the object.

    Returns:
        The object without that array, and the array's whole elements; both empty if the cut lies before them.
    """
    text = data.decode("utf-8", errors="ignore")
    opening = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
    if opening is None:
        return {}, []
    try:
        head = json.loads(text[: opening.end()] + "]}")
    except ValueError:
        return {}, []
    elements: list[Any] = []
    position = _skip(text, opening.end())
    while position < len(text):
        try:
            element, position = _DECODER.raw_decode(text, position)
        except ValueError:
            break
        elements.append(element)
        position = _skip(text, position)
    return head, elements


class _Window:
    """The text of a file from some byte on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text = ""
        self.offset = 0
        """Byte of the file at which ``text`` begins."""
        self.grow()

    def grow(self) -> bool:
        """Read on; False at the end of the file, or when one element would not fit in memory."""
        if len(self.text) > _MAX_BUFFER:
            return False
        # Twice as much each time, so that a long element is not parsed again for every chunk.
        data = self._file.read(max(_CHUNK, len(self.text)))
        self.text += self._decoder.decode(data, final=not data)
        return bool(data)

    def drop(self, num_chars: int) -> None:
        """Forget the beginning."""
        self.offset += _num_bytes(self.text[:num_chars])
        self.text = self.text[num_chars:]


def _elements(window: _Window, element_key: str) -> Iterator[Element]:
    start = 0
    while True:
        start = _skip(window.text, start)
        if window.text[start : start + 1] == "]":
            return
        try:
            value, end = _DECODER.raw_decode(window.text, start)
            # A number at the end of the window may have more digits behind it; objects and strings cannot.
            if end == len(window.text) and window.grow():
                continue
        except (ValueError, RecursionError):
            window.drop(start)
            start = 0
            if window.grow():
                continue
            end = _next_element(window.text, element_key)
            problem = "file_truncated" if end is None else "json_invalid"
            yield Element(window.offset, _num_bytes(window.text[:end]), None, problem)
            if end is None:
                return
            start = end
            continue
        begin = window.offset + _num_bytes(window.text[:start])
        yield Element(begin, _num_bytes(window.text[start:end]), value)
        start = end
        if start > _CHUNK:
            window.drop(start)
            start = 0


def _next_element(text: str, element_key: str) -> int | None:
    """Where the next whole element begins behind a broken one; None if there is none."""
    if not element_key:
        return None
    for gap in _BETWEEN.finditer(text):
        try:
            value, _ = _DECODER.raw_decode(text, gap.end())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and element_key in value:
            return gap.end()
    return None


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogateescape"))


def _skip(text: str, position: int) -> int:
    match = _GAP.match(text, position)
    return match.end() if match else position
