"""One shard of samples: bytes, columns, the law of Table 1 for every segment, and hashes of the sample ids.

Segments are looked at a few thousand samples at a time, in Arrow's own buffers; only those that
:func:`shards.rates.doubtful_segments` doubts are gone through one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards.errors import ConfigError
from shards.faults import Fault, ShardFindings
from shards.manifest import ShardEntry
from shards.open_shard import buffer_view
from shards.rates import doubtful_segments, rate_fault
from shards.records import SAMPLE_SCHEMA
from shards.sample_ids import hash_strings
from shards.storage import arrow_source
from shards.verify_files import NOT_AS_WRITTEN, UNREADABLE, size_fault, without_path
from shards.vocabulary import Modality
from shards.writer import file_sha256

BATCH_ROWS = 1024
"""Samples decoded at a time: more of them only wait for memory, and more threads for the other workers."""
_FIELDS = ("modality", "text", "codes", "levels", "duration_s")
"""Of a segment: those that are read."""


@dataclass(frozen=True, slots=True)
class _Segments:
    """All segments of a batch in columns; a number that is not known is 0, a duration NaN."""

    row: npt.NDArray[np.int64]
    names: list[str | None]
    modality: npt.NDArray[np.int64]
    has_text: npt.NDArray[np.bool_]
    has_codes: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.uint16]
    bounds: npt.NDArray[np.int32]
    levels: npt.NDArray[np.int64]
    duration_s: npt.NDArray[np.float64]


def look_at_samples(folder: Path, entry: ShardEntry) -> ShardFindings:
    """Everything that can be said of one shard of samples.

    Raises:
        ConfigError: the object store it lies in cannot be read.
    """
    path = folder / entry.path
    try:
        if fault := size_fault(path, entry):
            return ShardFindings(faults=(Fault(entry.path, fault),))
        if file_sha256(path) != entry.sha256:
            return ShardFindings(faults=(Fault(entry.path, NOT_AS_WRITTEN),))
        with open_parquet(path) as file:
            return _look_inside(file, entry)
    except ConfigError:
        raise
    except UNREADABLE as error:
        return ShardFindings(faults=(Fault(entry.path, f"cannot be read: {without_path(error, path)}"),))


@contextmanager
def open_parquet(path: Path) -> Generator[Any]:
    """A Parquet file here or in an object store."""
    with pq.ParquetFile(arrow_source(path)) as file:
        yield file


def _look_inside(file: Any, entry: ShardEntry) -> ShardFindings:
    if not file.schema_arrow.equals(SAMPLE_SCHEMA):
        return ShardFindings(faults=(Fault(entry.path, "its columns are not those of FORMAT.md"),))
    num_rows = int(file.metadata.num_rows)
    faults: list[Fault] = []
    if num_rows != entry.num_rows:
        faults.append(Fault(entry.path, f"the manifest says {entry.num_rows} rows, it has {num_rows}"))
    frames: Counter[str] = Counter()
    wrong: dict[str, set[int]] = {}
    hashes = [np.empty(0, np.uint64)]
    first = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=_columns(file), use_threads=False):
        hashes.append(hash_strings(batch.column("sample_id")))
        segments = _segments(batch.column("segments"))
        _count(segments, frames)
        for row, message in _segment_faults(segments):
            wrong.setdefault(message, set()).add(first + row)
        first += batch.num_rows
    faults += (Fault(entry.path, message, tuple(sorted(rows))) for message, rows in wrong.items())
    if not wrong and entry.tokens and not _same_tokens(entry.tokens, frames):
        faults.append(
            Fault(entry.path, f"the manifest says {dict(entry.tokens)} tokens, it holds frames {dict(frames)}")
        )
    found = np.sort(np.concatenate(hashes))
    return ShardFindings(num_rows, num_rows, dict(frames), complete=True, faults=tuple(faults), id_hashes=found)


def _columns(file: Any) -> list[str]:
    """Names of the Parquet leaves that are read: the ids and the looked-at fields of the segments."""
    paths: list[str] = [file.schema.column(number).path for number in range(len(file.schema))]
    parts = {path: path.split(".") for path in paths}
    return ["sample_id", *(path for path, names in parts.items() if names[0] == "segments" and names[3] in _FIELDS)]


def _segments(column: Any) -> _Segments:
    flat = column.flatten()
    modality, text, codes, levels, duration_s = (flat.field(name) for name in _FIELDS)
    encoded = modality.dictionary_encode()
    names: list[str | None] = [*encoded.dictionary.to_pylist(), None]
    return _Segments(
        row=np.repeat(np.arange(len(column)), np.diff(buffer_view(column.offsets))),
        names=names,
        modality=_filled(encoded.indices, len(names) - 1).astype(np.int64),
        has_text=_valid(text),
        has_codes=_valid(codes),
        codes=buffer_view(codes.values),
        bounds=buffer_view(codes.offsets),
        levels=_filled(levels, 0).astype(np.int64),
        duration_s=_filled(duration_s, np.nan),
    )


def _filled(array: Any, unknown: float) -> npt.NDArray[Any]:
    # Not `fill_null`: for its plain number pyarrow imports pandas, which takes a second.
    return buffer_view(array) if not array.null_count else np.where(_valid(array), buffer_view(array), unknown)


def _valid(array: Any) -> npt.NDArray[np.bool_]:
    return buffer_view(array.is_valid().cast("uint8")).astype(np.bool_)


def _count(segments: _Segments, frames: Counter[str]) -> None:
    lengths = np.diff(segments.bounds) // np.maximum(segments.levels, 1)
    counted = np.bincount(segments.modality, weights=lengths * segments.has_codes, minlength=len(segments.names))
    for name, count in zip(segments.names, counted.tolist(), strict=True):
        if count and name is not None:
            frames[name] += int(count)


def _segment_faults(segments: _Segments) -> Iterator[tuple[int, str]]:
    """(row, fault) of every segment that breaks Table 1."""
    is_text = np.array([name == Modality.TEXT for name in segments.names])[segments.modality]
    for row in segments.row[is_text & (segments.has_codes | ~segments.has_text)].tolist():
        yield row, "a text segment without text, or with codes"
    hollow = ~is_text & (segments.has_text | ~segments.has_codes | (segments.levels == 0))
    for number in np.flatnonzero(hollow).tolist():
        yield int(segments.row[number]), f"{_name(segments, number)}: a medium without codes, or with text"
    lengths = np.diff(segments.bounds).astype(np.int64)
    doubtful = doubtful_segments(
        segments.names, segments.modality, lengths, _largest(segments, lengths), segments.levels, segments.duration_s
    )
    for number in np.flatnonzero(doubtful & ~is_text & ~hollow).tolist():
        codes = segments.codes[segments.bounds[number] : segments.bounds[number + 1]]
        duration_s = float(segments.duration_s[number])
        known = None if np.isnan(duration_s) else duration_s
        message = rate_fault(_name(segments, number), codes, int(segments.levels[number]), known)
        if message:
            yield int(segments.row[number]), message


def _largest(segments: _Segments, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(segments,) the largest code of each, 0 for none."""
    largest = np.zeros(len(lengths), np.int64)
    filled = np.flatnonzero(lengths)
    if filled.size:
        codes = segments.codes[: segments.bounds[-1]]
        largest[filled] = np.maximum.reduceat(codes, segments.bounds[:-1][filled])
    return largest


def _name(segments: _Segments, number: int) -> str:
    return str(segments.names[segments.modality[number]])


def _same_tokens(said: Mapping[str, int], frames: Mapping[str, int]) -> bool:
    """Whether a manifest's tokens are these frames: one by one, or as many levels of each as the language model reads."""
    media = {name: count for name, count in said.items() if name != Modality.TEXT and count}
    read = {name: count * Modality(name).rate.levels_read for name, count in frames.items()}
    return media in (dict(frames), read)
