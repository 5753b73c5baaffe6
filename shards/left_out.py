"""What is in a corpus and not in its dataset, as it lies on disk: broken inputs, filtered ones, removed ones (FORMAT.md).

Every unit has its own part, ``rejects/unit-NNNNNN.parquet``. The parts are joined, in unit order, into
``rejects.parquet`` (broken inputs) and ``filtered.parquet`` (sound inputs that a declared rule, or a take-down, leaves
out). ``removed.parquet`` lists the take-downs (:mod:`shards.removal`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.writer import commit_bytes

REJECTS_NAME = "rejects.parquet"
FILTERED_NAME = "filtered.parquet"
REMOVED_NAME = "removed.parquet"
PARTS_FOLDER = "rejects"
REMOVED = "removed"
"""The reason a take-down is counted under, among the filtered."""

_GROUP_ROWS = 1 << 16
_COLUMNS = [
    pa.field("sample_id", pa.string(), nullable=False),
    pa.field("corpus", pa.string(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("error", pa.string(), nullable=False),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("member", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("unit", pa.string(), nullable=False),
]
REJECT_SCHEMA = pa.schema(_COLUMNS)
PART_SCHEMA = pa.schema([*_COLUMNS, pa.field("rejected", pa.bool_(), nullable=False)])
REMOVED_SCHEMA = pa.schema([*_COLUMNS, pa.field("asked", pa.string(), nullable=False)])


def part_path(folder: Path, unit: str) -> Path:
    """Where a unit's own list of what it left out lies; no file when it left out nothing."""
    return folder / PARTS_FOLDER / f"{unit}.parquet"


def join_parts(parts: Iterable[Path], output: Path) -> None:
    """Commit ``rejects.parquet`` and ``filtered.parquet``, both also when empty, from the units' parts in order.

    In memory are one row group, and the files as they are compressed.
    """
    rejects, filtered = _Joined(), _Joined()
    for part in parts:
        with part.open("rb") as file:
            table = pq.read_table(file, schema=PART_SCHEMA)
        for joined, chosen in ((rejects, pc.field("rejected")), (filtered, ~pc.field("rejected"))):
            joined.add(table.filter(chosen).select(REJECT_SCHEMA.names))
    commit_bytes(output / REJECTS_NAME, rejects.close())
    commit_bytes(output / FILTERED_NAME, filtered.close())


class _Joined:
    """A Parquet file in the making, its row groups cut by rows alone and not by the parts they come in."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, REJECT_SCHEMA, compression="zstd", compression_level=3)
        self._waiting = REJECT_SCHEMA.empty_table()

    def add(self, table: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, table])
        while len(self._waiting) >= _GROUP_ROWS:
            self._writer.write_table(self._waiting.slice(0, _GROUP_ROWS))
            self._waiting = self._waiting.slice(_GROUP_ROWS)

    def close(self) -> bytes:
        if len(self._waiting):
            self._writer.write_table(self._waiting)
        self._writer.close()
        return self._sink.getvalue().to_pybytes()
