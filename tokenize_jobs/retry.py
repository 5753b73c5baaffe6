"""Doing again what failed in a unit that is done, and nothing else.

The samples that were written stay as they are; only rejected inputs are decoded and encoded. What comes out takes its
place in the order of the inputs, so the unit's files are those of a unit done in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.samples import Filtered, Reject
from pipeline.tokenization import Encoded
from shards.lookup import input_id
from shards.records import Provenance, table_to_samples
from tokenize_jobs.plan import Unit

_ONCE_ONLY = "duplicate_id"
"""Of two inputs with one id the second was rejected; there is no telling them apart here, nor a reason to."""


def ids_to_retry(unit: Unit, output: Path) -> frozenset[str]:
    """Ids of the inputs of a unit that were rejected; of a window, the id of the whole."""
    return frozenset(input_id(item.sample_id) for item in _left_out(unit, output) if _is_retried(item))


def merge(unit: Unit, output: Path, again: Sequence[Encoded], order: Sequence[str]) -> list[Encoded]:
    """The unit's outcomes with those of the retried inputs in their place.

    Args:
        again: outcomes of the inputs that :func:`ids_to_retry` named.
        order: ids of all inputs of the unit, in its order.
    """
    retried = ids_to_retry(unit, output)
    kept: list[Encoded] = [item for item in _written(unit, output) if input_id(item.sample_id) not in retried]
    kept += [item for item in _left_out(unit, output) if input_id(item.sample_id) not in retried]
    last = {sample_id: place for place, sample_id in enumerate(order)}
    first = {sample_id: place for place, sample_id in reversed(list(enumerate(order)))}

    def place(item: Encoded) -> int:
        is_second = isinstance(item, Reject) and item.reason == _ONCE_ONLY
        return (last if is_second else first)[input_id(item.sample_id)]

    # Sorting is stable, and windows of one input were written in their order.
    return sorted([*kept, *again], key=place)


def _is_retried(item: Filtered | Reject) -> bool:
    return isinstance(item, Reject) and item.reason != _ONCE_ONLY


def _written(unit: Unit, output: Path) -> list[Encoded]:
    path = unit.shard(output)
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return list(table_to_samples(pq.read_table(file)))


def _left_out(unit: Unit, output: Path) -> list[Filtered | Reject]:
    path = unit.left_out(output)
    if not path.is_file():
        return []
    with path.open("rb") as file:
        rows = pq.read_table(file).to_pylist()
    found: list[Filtered | Reject] = []
    for row in rows:
        kind = Reject if row["rejected"] else Filtered
        provenance = Provenance(row["source_file"], row["member"], row["offset"])
        found.append(kind(row["sample_id"], row["corpus"], row["reason"], row["error"], provenance))
    return found
