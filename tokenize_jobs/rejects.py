"""What did not become a row: who, where it came from, and why. Never lost, never silent.

Every unit commits its own part; the parts are joined, in unit order, into ``OUTPUT/rejects.parquet`` (broken inputs)
and ``OUTPUT/filtered.parquet`` (sound inputs that a declared rule leaves out). A budget on the share of rejects stops
a job that is reading the wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.samples import Filtered, Reject
from shards.errors import RejectBudgetExceeded
from shards.writer import commit_table

REJECTS_NAME = "rejects.parquet"
FILTERED_NAME = "filtered.parquet"

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


def join_parts(parts: Sequence[Path], output: Path) -> None:
    """Commit ``rejects.parquet`` and ``filtered.parquet``, both also when empty, from the units' parts in order."""
    tables = [pq.read_table(part, schema=PART_SCHEMA) for part in parts]
    table = pa.concat_tables([PART_SCHEMA.empty_table(), *tables])
    rejected = pc.field("rejected")
    for name, chosen in ((REJECTS_NAME, rejected), (FILTERED_NAME, ~rejected)):
        commit_table(output / name, table.filter(chosen).select(REJECT_SCHEMA.names))


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
