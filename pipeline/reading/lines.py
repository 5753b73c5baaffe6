"""Text files of one record a line, plain or gzip, read in bounded memory and never trusted.

Repairs, all listed in ``docs/damaged-inputs.md``: gzip is told by its first bytes, not by the name; several gzip members
follow each other; a byte order mark and carriage returns go; blank lines are no inputs. What cannot be repaired is a
:class:`Line` with a ``problem``, so counting and reading agree whatever the file looks like.

:func:`read_lines` is the whole ``read`` of a corpus whose inputs are lines; the corpus brings what a line means.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.reading.files import relative_name
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt
from pipeline.reading.text import decode_utf8
from pipeline.samples import Filtered, RawSample, Source
from shards.errors import SampleError
from shards.records import Provenance

MAX_LINE_BYTES = 32 << 20
OptionsT = TypeVar("OptionsT", bound=CorpusOptions)
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a file.

    Attributes:
        number: from 1, blank lines counted.
        offset: of its first byte in the file, decompressed.
        data: without its line end; empty if there is a problem.
        problem: the reason it is a reject: ``file_empty``, ``file_truncated``, ``line_too_long``; else empty.
    """

    number: int
    offset: int
    data: bytes
    problem: str = ""


class _Truncated(Exception):
    """A gzip stream ended early or is broken."""


def count_lines(path: Path) -> int:
    """Number of records in a file."""
    return sum(1 for _ in iter_lines(path))


def iter_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES, keep_blank: bool = False) -> Iterator[Line]:
    """Records in file order; a file without a byte, or with a broken end, has one more that says so.

    Args:
        keep_blank: blank lines come too, because they may be part of a record (csv).
    """
    if not path.stat().st_size:
        yield Line(1, 0, b"", "file_empty")
        return
    position = _Position()
    with path.open("rb") as file:
        try:
            for data, problem in _split_lines(_chunks(file), max_line_bytes):
                line = position.take(data, problem)
                if line.problem or keep_blank or line.data.strip():
                    yield line
        except _Truncated:
            yield Line(position.number + 1, position.offset, b"", "file_truncated")


def read_lines(
    root: Path,
    source: Source,
    options: OptionsT,
    build: Callable[[Path, Path, Line, OptionsT, str], RawSample | Filtered],
    *,
    corpus: str,
    prefix: str | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Outcome]:
    """One outcome for each of the records ``[start, stop)`` of a source.

    Args:
        build: from the root, the file, a line, the options and the id of its sample to the sample; what it raises as
            ``SampleError`` is a reject.
        prefix: of the ids, ``PREFIX/NUMBER``; the corpus and the file's name without ``.jsonl[.gz]`` if none is given.
    """
    name = relative_name(source.path, root)
    if prefix is None:
        prefix = f"{corpus}/{name.removesuffix('.gz').removesuffix('.jsonl')}"
    for line in islice(iter_lines(source.path), start, stop):
        sample_id = f"{prefix}/{line.number}"
        yield attempt(
            lambda line=line, sample_id=sample_id: build(root, source.path, line, options, sample_id),
            sample_id=sample_id,
            corpus=corpus,
            provenance=Provenance(name, offset=line.offset),
        )


def check_line(line: Line) -> bytes:
    """The bytes of a line; ``SampleError`` if there is a problem with it."""
    if line.problem:
        raise SampleError(line.problem, f"line {line.number}: expected a whole record, found the file damaged here")
    return line.data


def json_record(line: Line) -> dict[str, Any]:
    """A line as a JSON object.

    Raises:
        SampleError: the line's problem, ``text_not_utf8``, ``json_invalid``, or ``record_malformed`` if it is no object.
    """
    return parse_record(check_line(line), what=f"line {line.number}")


def parse_record(data: bytes, *, what: str) -> dict[str, Any]:
    """Bytes as a JSON object; raises as :func:`json_record`."""
    text = decode_utf8(data, what=what)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError("json_invalid", f"{what}: expected JSON, found {type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise SampleError("record_malformed", f"{what}: expected a JSON object, found {type(record).__name__}")
    return record


class _Position:
    """Where the next line stands."""

    def __init__(self) -> None:
        self.number = 0
        self.offset = 0

    def take(self, data: bytes, problem: str) -> Line:
        """The line that ``data`` (with its end) is."""
        self.number += 1
        offset = self.offset
        self.offset += len(data)
        if problem:
            return Line(self.number, offset, b"", problem)
        body = data.rstrip(b"\r\n")
        if self.number == 1:
            body = body.removeprefix(codecs.BOM_UTF8)
        return Line(self.number, offset, body)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    head = file.read(_CHUNK)
    if head.startswith(_GZIP_MAGIC):
        yield from _gunzip(head, file)
        return
    while head:
        yield head
        head = file.read(_CHUNK)


def _gunzip(data: bytes, file: IO[bytes]) -> Iterator[bytes]:
    """Decompress a chunk at a time; Python's own reader throws away what it had read ahead when the stream is cut."""
    stream = zlib.decompressobj(wbits=31)
    while data:
        try:
            out = stream.decompress(data, _CHUNK)
        except zlib.error as error:
            raise _Truncated from error
        if out:
            yield out
        if stream.eof:
            # Padding after the last member is allowed; another member follows at once.
            data = (stream.unused_data or file.read(_CHUNK)).lstrip(b"\0") or file.read(_CHUNK)
            if data:
                stream = zlib.decompressobj(wbits=31)
            continue
        data = stream.unconsumed_tail or file.read(_CHUNK)
    if not stream.eof:
        raise _Truncated


def _split_lines(chunks: Iterator[bytes], max_line_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Lines with their ends; of one that is too long only the problem is kept.

    A cut stream ends with ``_Truncated`` and takes the half line before the cut with it.
    """
    pending, too_long = b"", False
    for chunk in chunks:
        *whole, rest = (pending + chunk).split(b"\n")
        for line in whole:
            long = too_long or len(line) > max_line_bytes
            yield line + b"\n", "line_too_long" if long else ""
            too_long = False
        pending = rest
        if len(pending) > max_line_bytes:
            pending, too_long = b"", True
    if pending or too_long:
        yield pending, "line_too_long" if too_long or len(pending) > max_line_bytes else ""
