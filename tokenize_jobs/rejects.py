"""What did not become a row: who, where it came from, and why. Never lost, never silent.

Every unit commits its own part; the parts are joined, in unit order, into ``OUTPUT/rejects.parquet`` (broken inputs)
and ``OUTPUT/filtered.parquet`` (sound inputs that a declared rule leaves out). A budget on the share of rejects stops
a job that is reading the wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.samples import Filtered, Reject
from shards.errors import RejectBudgetExceeded
from shards.writer import commit_bytes

REJECTS_NAME = "rejects.parquet"
FILTERED_NAME = "filtered.parquet"

_GROUP_ROWS = 1 << 16
MIN_INPUTS_FOR_BUDGET = 100
"""A share of fewer inputs says nothing: one broken file of three is no sign that the config is wrong."""

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


def left_out_table(items: Iterable[Reject | Filtered], unit: str) -> pa.Table:
    """Rows of :data:`PART_SCHEMA`, in the order given."""
    rows = [
        {
            "sample_id": item.sample_id,
            "corpus": item.corpus,
            "reason": item.reason,
            "error": item.message,
            "source_file": item.provenance.source_file,
            "member": item.provenance.member,
            "offset": item.provenance.offset,
            "unit": unit,
            "rejected": isinstance(item, Reject),
        }
        for item in items
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


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


def count_reasons(items: Iterable[Reject | Filtered]) -> dict[str, int]:
    """Reason -> count, sorted by reason."""
    return dict(sorted(Counter(item.reason for item in items).items()))


def check_budget(rejected: Mapping[str, int], inputs: int, *, share: float, where: str, key: str) -> None:
    """Stop when more than ``share`` of the inputs were rejected; fewer than 100 inputs are never stopped.

    Raises:
        RejectBudgetExceeded: naming the most frequent reasons and the config key.
    """
    count = sum(rejected.values())
    if inputs < MIN_INPUTS_FOR_BUDGET or count <= share * inputs:
        return
    top = ", ".join(f"{reason} ({number})" for reason, number in Counter(rejected).most_common(3))
    raise RejectBudgetExceeded(
        f"{where}: expected at most {share:.1%} of {inputs} inputs to be rejected, found {count}: {top}; "
        f"mend the corpus or the config, or raise {key}"
    )
