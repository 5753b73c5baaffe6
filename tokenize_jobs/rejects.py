"""What did not become a row: who, where it came from, and why. Never lost, never silent.

How it lies on disk is :mod:`shards.left_out`'s business. A budget on the share of rejects stops a job that is reading the
wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.samples import Filtered, Reject
from shards.errors import RejectBudgetExceeded
from shards.left_out import PART_SCHEMA

MIN_INPUTS_FOR_BUDGET = 100
"""A share of fewer inputs says nothing: one broken file of three is no sign that the config is wrong."""


def left_out_table(items: Iterable[Reject | Filtered], unit: str) -> pa.Table:
    """Rows of :data:`shards.left_out.PART_SCHEMA`, in the order given."""
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
