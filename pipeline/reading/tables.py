"""Tables of text: csv, tsv and jsonl files, plain or gzip, as rows of roles.

Read line by line in bounded memory (see :mod:`pipeline.reading.lines`). A csv row may go over several lines, inside quotes;
a quote that nothing closes takes the lines up to csv's own limit (131,072 characters) with it, and all of that is one
reject. A tsv row is one line; a field in quotes is unquoted, and a quote that nothing closes is a character like any other.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reading.columns import Columns
from pipeline.reading.lines import Line, check_line, iter_lines, json_record
from pipeline.reading.text import decode_utf8
from shards.errors import SampleError

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table.

    Attributes:
        line: where it begins, and its bytes if a row is a line.
        fields: of a csv row; else None.
        problem: the reason it is a reject, of a csv row.
    """

    line: Line
    fields: tuple[str, ...] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """Names of the columns, and which of them count; empty for jsonl, where each record has its own."""

    columns: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()


def count_table(path: Path, *, columns: Columns) -> int:
    """Number of rows; a table whose header is wrong is one."""
    return sum(1 for _ in iter_table(path, columns=columns))


def iter_table(path: Path, *, columns: Columns) -> Iterator[tuple[TableRow, Header | SampleError]]:
    """Rows in file order with their header; the header itself, with what is wrong with it, if it is none."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    lines = iter_lines(path, keep_blank=kind == "csv")
    if kind == "jsonl":
        yield from ((TableRow(line), Header()) for line in lines)
        return
    rows = _csv_rows(lines) if kind == "csv" else (TableRow(line) for line in lines)
    first = next(rows, None)
    if first is None:
        return
    try:
        names = _names(first)
        header = Header(names, tuple(columns.find(names).items()))
    except SampleError as error:
        yield first, error
        return
    yield from ((row, header) for row in rows)


def row_values(row: TableRow, header: Header | SampleError, *, columns: Columns) -> dict[str, Any]:
    """Role or quality field -> value, of the columns that are there.

    Raises:
        SampleError: the header's own problem or the line's, ``record_malformed``, ``json_invalid``, ``text_not_utf8``.
    """
    if isinstance(header, SampleError):
        raise header
    if not header.columns:
        record = json_record(row.line)
        return {role: record[name] for role, name in columns.present(record).items()}
    fields = _fields(row)
    if len(fields) != len(header.columns):
        raise SampleError(
            "record_malformed",
            f"line {row.line.number}: expected {len(header.columns)} columns, found {len(fields)}",
        )
    values = dict(zip(header.columns, fields, strict=True))
    return {role: values[name] for role, name in header.roles}


def _names(row: TableRow) -> tuple[str, ...]:
    names = tuple(name.strip() for name in _fields(row))
    if not any(names):
        raise SampleError("header_malformed", "expected the names of columns, found none")
    return names


def _fields(row: TableRow) -> Sequence[str]:
    data = check_line(row.line)
    if row.problem:
        raise SampleError(
            row.problem, f"line {row.line.number}: expected a row of fields, found a quote that nothing closes"
        )
    if row.fields is not None:
        return row.fields
    return [_unquote(field) for field in decode_utf8(data, what=f"line {row.line.number}").split("\t")]


def _unquote(field: str) -> str:
    quoted = len(field) >= 2 and field.startswith('"') and field.endswith('"')
    return field[1:-1].replace('""', '"') if quoted else field


class _Feed:
    """Lines as the csv module wants them; remembers where a row began, and stops at a damaged line."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.first: Line | None = None
        self.damaged: Line | None = None

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if line.problem:
            self.damaged = line
            raise StopIteration
        self.first = self.first or line
        # Bytes that are no UTF-8 survive as lone surrogates, which the text check of the one field refuses.
        return line.data.decode("utf-8", errors="surrogateescape") + "\n"


def _csv_rows(lines: Iterator[Line]) -> Iterator[TableRow]:
    feed = _Feed(lines)
    reader = csv.reader(feed)
    while True:
        if feed.damaged is not None:
            yield TableRow(feed.damaged)
        feed.first = feed.damaged = None
        try:
            fields = next(reader)
        except StopIteration:
            if feed.damaged is None:
                return
            continue
        except csv.Error:
            if feed.first is not None:
                yield TableRow(feed.first, problem="record_malformed")
            continue
        # A blank line outside quotes is no input.
        if feed.first is not None and (len(fields) > 1 or "".join(fields).strip()):
            yield TableRow(feed.first, tuple(fields))
