"""What a look at a dataset found: faults, and the sums of one shard that the manifest's are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_RUNS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be: which file, which rows, what."""

    path: str
    what: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.path}: {self.what}"
        runs = row_runs(self.rows)
        named = ", ".join(f"{first}..{last}" if last > first else str(first) for first, last in runs[:MAX_RUNS_NAMED])
        left = sum(last - first + 1 for first, last in runs[MAX_RUNS_NAMED:])
        return f"{self.path}: rows {named}{f' and {left:,} more' if left else ''}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; rows as runs ``[first, last]``, both included."""
        return {"path": self.path, "rows": [list(run) for run in row_runs(self.rows)], "what": self.what}


def row_runs(rows: Iterable[int]) -> list[tuple[int, int]]:
    """Rows as runs ``(first, last)`` of neighbours, both included, ascending."""
    found = np.unique(np.fromiter(rows, np.int64))
    if not found.size:
        return []
    breaks = np.flatnonzero(np.diff(found) > 1)
    first = found[np.concatenate([[0], breaks + 1])]
    last = found[np.concatenate([breaks, [-1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ShardFindings:
    """What one shard holds, and what is wrong with it; small enough to be handed from process to process.

    Attributes:
        num_rows: rows of the shard, 0 if it could not be read.
        documents: placements of packed rows, or samples.
        tokens: by modality; for sample shards, code frames by modality.
        tokens_by_origin: of packed shards, from their sidecars: ids by (dataset, direction).
        complete: whether everything was read, so that its sums may be compared with the manifest's.
        id_hashes: of sample shards: sorted hashes of the sample ids, eight bytes each.
    """

    num_rows: int = 0
    documents: int = 0
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    tokens_by_origin: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    complete: bool = False
    faults: tuple[Fault, ...] = ()
    id_hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
