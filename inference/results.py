"""``results.jsonl``: one line an answer, appended a batch at a time.

A batch is one write, then fsync, after its files are on disk. A process that is killed loses at most the batch in hand;
half a line that it may leave is cut off when the file is opened again. An answer is known by its task's key and by the
settings it was given under: other weights, another seed or other decoding answer anew, beside the earlier answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from shards.errors import DatasetError

RESULTS_NAME = "results.jsonl"

Row = Mapping[str, Any]


def read_results(path: Path) -> list[Row]:
    """All whole lines, in the order in which they were written; none if there is no file.

    Raises:
        DatasetError: a whole line that is no result.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    for number, line in enumerate(_whole(path.read_bytes()).split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            _ = row["key"], row["settings"]
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(
                f"{path}, line {number}: expected a result, found {line[:80]!r}; remove that line, and it is answered again"
            ) from error
        rows.append(cast(Row, row))
    return rows


def mend_results(path: Path) -> None:
    """Cut off half a line that a killed process has left."""
    if path.is_file():
        data = path.read_bytes()
        if len(whole := _whole(data)) < len(data):
            os.truncate(path, len(whole))


def append_results(path: Path, rows: Sequence[Row]) -> None:
    """Add lines with one write, durably."""
    data = "".join(_lines(rows)).encode("utf-8")
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    finally:
        os.close(file)


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    # ASCII alone: no character of an answer can end a line.
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]
