"""Rows of a Parquet file that holds media, a few at a time and never trusted.

Only the columns that count are read, and only the row groups of a slice. Memory is bounded by what the writer made a page:
usually about a thousand rows, so one row group of the files that people publish (100 to 1,000 rows each); where pages are
small, by a few of them (200 MB of sound in one row group of small pages: 40 MB resident, measured).

A file that cannot be opened is one row with a problem. Where a row group is damaged, the rows before the damage are read
and each of those after it is one row with a problem; other row groups lose nothing. Batches always begin with their row
group, so a row looks the same in every slice.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.reading.columns import Columns
from shards.errors import SampleError
from shards.storage import open_random

_BATCH_ROWS = 16
_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
# What pyarrow raises on damaged files.
_DAMAGE = (pa.ArrowException, OSError, ValueError, EOFError)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        number: from 0, in the whole file.
        values: role or quality field -> value, for the columns that the file has.
        problem: the reason it is a reject; else None.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: SampleError | None = None


def count_rows(path: Path, *, columns: Columns) -> int:
    """Number of rows of a file; one if it cannot be read at all."""
    try:
        with _open_table(path, columns) as (file, _):
            return file.metadata.num_rows
    except SampleError:
        return 1


def iter_rows(path: Path, *, columns: Columns, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows ``[start, stop)`` of a file, in file order.

    Problems: ``file_empty``, ``file_truncated``, ``parquet_unreadable`` and ``header_malformed`` of the whole file;
    ``row_group_damaged``, ``text_not_utf8`` and ``record_malformed`` of rows.
    """
    try:
        with _open_table(path, columns) as (file, names):
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                within = range(max(start, first), end if stop is None else min(stop, end))
                if within:
                    yield from _group_rows(file, group, names, columns, first, within)
                first = end
    except SampleError as problem:
        yield from [Row(0, problem=problem)][start:stop]


@contextmanager
def _open_table(path: Path, columns: Columns) -> Generator[tuple[pq.ParquetFile, dict[str, str]]]:
    """An open file, and role -> column.

    Raises:
        SampleError: the problem of the whole file.
    """
    size = path.stat().st_size
    if not size:
        raise SampleError("file_empty", "expected a Parquet file, found no bytes")
    with open_random(path) as raw:
        try:
            # Not buffered ahead: that would hold a whole row group, however small its pages are.
            file = pq.ParquetFile(cast(Any, raw), pre_buffer=False, buffer_size=_BUFFER_BYTES)
            names = columns.find(file.schema_arrow.names)
            plausible = _is_plausible(file.metadata, size)
        except _DAMAGE as error:
            raise SampleError(*_problem(raw, error)) from error
        if not plausible:
            raise SampleError(
                "parquet_unreadable", "expected a footer that agrees with itself about its rows, found none"
            )
        yield file, names


def _problem(raw: IO[bytes], error: Exception) -> tuple[str, str]:
    """Why a file could not be opened: cut off, which is what downloads do, or anything else."""
    raw.seek(0)
    starts_well = raw.read(len(_MAGIC)) == _MAGIC
    raw.seek(max(0, raw.seek(0, 2) - len(_MAGIC)))
    if starts_well and raw.read() != _MAGIC:
        return (
            "file_truncated",
            "expected the footer of a Parquet file at its end, found that it ends before; get it again",
        )
    return "parquet_unreadable", f"expected a Parquet file, found {type(error).__name__}: {str(error)[:200]}"


def _is_plausible(metadata: pq.FileMetaData, size: int) -> bool:
    """Whether the footer agrees with itself about how many rows there are: a number nobody checks would be believed.

    Columns are not asked: pyarrow (26) ends the whole process over a row group that lacks the one it is asked for.
    """
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    # A row is at least one bit: whether its medium is null.
    return min(counts, default=0) >= 0 and metadata.num_rows == sum(counts) <= 8 * size


def _group_rows(
    file: pq.ParquetFile, group: int, names: Mapping[str, str], columns: Columns, first: int, within: range
) -> Iterator[Row]:
    """Rows of one row group, whose first row has the number ``first``; those in ``within``, each exactly once."""
    wanted = sorted(set(names.values()))
    number, message = first, "fewer rows than the footer says"
    batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False)
    while number < within.stop:
        try:
            batch = next(batches, None)
        except _DAMAGE as error:
            batch, message = None, str(error)
        if batch is None:
            break
        for index in range(max(0, within.start - number), min(batch.num_rows, within.stop - number)):
            yield _row(batch, index, number + index, names, columns)
        number += batch.num_rows
    for lost in range(max(number, within.start), within.stop):
        problem = f"row {lost}: expected row group {group} to be whole, found {message[:200]}"
        yield Row(lost, problem=SampleError("row_group_damaged", problem))


def _row(batch: pa.RecordBatch, index: int, number: int, names: Mapping[str, str], columns: Columns) -> Row:
    values: dict[str, Any] = {}
    for role, name in names.items():
        try:
            values[role] = cast(Any, batch.column(name)[index]).as_py()
        except UnicodeDecodeError:
            if role in columns.required:
                problem = f"row {number}: expected UTF-8 in {name}, found other bytes"
                return Row(number, problem=SampleError("text_not_utf8", problem))
        except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
            if role in columns.required:
                problem = f"row {number}: expected a value in {name}, found {type(error).__name__}"
                return Row(number, problem=SampleError("record_malformed", problem))
    return Row(number, values)
