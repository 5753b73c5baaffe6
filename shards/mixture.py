"""Which row is read when: a pure function from a position in an endless stream to a row of a dataset.

Positions are cut into *periods*, the shortest stretch in which every share is a whole number of rows (100 for shares
in per cent). Every period holds exactly the shares, spread as evenly as rows allow, so any stretch of the stream is
within a few rows of them. Which row a dataset gives when it has its turn is :mod:`shards.row_order`'s: a keyed bijection
of the row numbers, so that a dataset of a billion rows costs no memory and every epoch has an order of its own; or one in
two levels (:mod:`shards.windows`), for datasets whose files must be fetched first.

Global batch k is positions ``[k * size, (k + 1) * size)`` whatever reads it, which is why a checkpoint stores one integer.
Which rank reads which of them is said by :meth:`Mixture.batches` (:mod:`shards.dealing`): each has the shares exactly, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from shards.dealing import LONGEST_CYCLE, Deal, deal, seats
from shards.errors import ConfigError
from shards.manifest import fingerprint
from shards.permutation import Int64s
from shards.row_order import RowOrder, as_positions, window_facts
from shards.windows import Windows

LONGEST_PERIOD = 1_000_000
_FINEST_SHARE = 10_000
ORDER_VERSION = 2
"""Of the order in which rows are read; part of the fingerprint. 1: six rounds of splitmix64, ranks took random stretches."""


@dataclass(frozen=True)
class Mixture:
    """Datasets, what each gives, and in which order.

    Attributes:
        shares: dataset -> part of all rows; they sum to 1. Decimals are taken as written (0.05 is 1/20).
        sizes: dataset -> its number of rows.
        seed: another seed is another order of the same rows.
        windows: of the datasets that are read a few files at a time; the others need none.
    """

    shares: Mapping[str, float]
    sizes: Mapping[str, int]
    seed: int = 0
    windows: Mapping[str, Windows] = field(default_factory=dict[str, Windows])
    names: tuple[str, ...] = field(init=False)
    period: int = field(init=False)
    _counts: Int64s = field(init=False, repr=False)  # (datasets,) rows of each dataset in a period
    _dataset_of_slot: Int64s = field(init=False, repr=False)  # (period,)
    _rank_of_slot: Int64s = field(init=False, repr=False)  # (period,) how many rows of that dataset came before
    _order: RowOrder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = _exact_shares(self.shares)
        missing = [name for name in parts if self.sizes.get(name, 0) < 1]
        if missing:
            raise ConfigError(f"mixture: expected rows in every dataset with a share, found none in {missing}")
        period = math.lcm(*(part.denominator for part in parts.values()))
        if period > LONGEST_PERIOD:
            raise ConfigError(
                f"mixture: shares {dict(self.shares)} repeat only every {period:,} rows (at most {LONGEST_PERIOD:,}); "
                "write them with at most four decimals"
            )
        counts = [int(part * period) for part in parts.values()]
        dataset_of_slot, rank_of_slot = _spread(counts)
        values = {
            "names": tuple(parts),
            "period": period,
            "_counts": np.array(counts, np.int64),
            "_dataset_of_slot": dataset_of_slot,
            "_rank_of_slot": rank_of_slot,
            "_order": RowOrder(tuple(parts), self.sizes, self.seed, self.windows),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides which row is read when."""
        facts = {"shares": dict(self.shares), "sizes": dict(self.sizes), "seed": self.seed, "order": ORDER_VERSION}
        return fingerprint(facts | window_facts(self.windows, self.names))

    def locate(self, position: int) -> tuple[str, int]:
        """Name of the dataset and the row to read at ``position``."""
        datasets, rows = self.locate_many(np.array([position], np.int64))
        return self.names[int(datasets[0])], int(rows[0])

    def locate_many(self, positions: npt.ArrayLike) -> tuple[Int64s, Int64s]:
        """:meth:`locate` for many positions at once.

        Args:
            positions: (n,) from 0 on, in any order.

        Returns:
            (n,) indices into ``names`` and (n,) rows of those datasets.

        Raises:
            IndexError: if a position is negative.
        """
        wanted = as_positions(positions)
        # Twice as fast as divmod.
        periods = wanted // self.period
        slots = wanted - periods * self.period
        datasets = self._dataset_of_slot[slots]
        return datasets, self._order.rows(datasets, periods * self._counts[datasets] + self._rank_of_slot[slots])

    def batch(self, step: int, size: int, *, rank: int = 0, world_size: int = 1) -> Int64s:
        """Positions that a rank reads at one step; see :meth:`batches`."""
        return self.batches([step], size, rank=rank, world_size=world_size)[0]

    def batches(self, steps: npt.ArrayLike, size: int, *, rank: int = 0, world_size: int = 1) -> Int64s:
        """Positions that a rank reads at each step, of the global batch ``[step * size, (step + 1) * size)``.

        Together the ranks read it, each row once. Each rank stays near the shares (a row or two off; a dozen where it
        reads one row a step) and has them exactly after every ``lcm(size, period)`` rows that all read, where that is a
        whole number of rows for each of them and each dataset; else after ``world_size`` times as many.

        Args:
            steps: (n,) from 0 on.
            size: rows of a global batch.

        Returns:
            (n, size / world_size), in ascending order.
        """
        wanted = np.asarray(steps, np.int64)
        if size % world_size:
            raise ValueError(f"expected a batch that divides over the ranks, found {size} over {world_size}")
        # Steps after which the batches look the same again.
        cycle = self.period // math.gcd(size, self.period)
        if cycle * size <= LONGEST_CYCLE:
            places = self._places(wanted, cycle, 0, size, rank, world_size)
        else:
            cycle = max(1, LONGEST_CYCLE // size)
            places = np.empty((len(wanted), size // world_size), np.int64)
            for number in np.unique(wanted // cycle).tolist():
                chosen = wanted // cycle == number
                slot = number * cycle * size % self.period
                places[chosen] = self._places(wanted[chosen], cycle, slot, size, rank, world_size)
        return wanted[:, None] * size + places

    def _places(self, steps: Int64s, cycle: int, slot: int, size: int, rank: int, world_size: int) -> Int64s:
        """Which rows of its batches a rank reads; the cycles of these steps all begin at one slot of the schedule."""
        dealt = _dealt(tuple(self._counts.tolist()), slot, cycle, size, world_size)
        taken = rank if dealt.is_exact else seats(rank, steps // cycle, world_size)
        return dealt.columns[steps % cycle, taken]

    def rows_drawn(self, stop: int) -> dict[str, int]:
        """Rows each dataset gives to positions ``[0, stop)``."""
        periods, rest = divmod(stop, self.period)
        begun = np.bincount(self._dataset_of_slot[:rest], minlength=len(self.names))
        drawn = periods * self._counts + begun
        return {name: int(count) for name, count in zip(self.names, drawn, strict=True)}

    def epochs(self, stop: int) -> dict[str, float]:
        """How often each dataset is read in positions ``[0, stop)``; 2.5 is two whole epochs and a half."""
        return {name: count / self.sizes[name] for name, count in self.rows_drawn(stop).items()}


@functools.lru_cache(maxsize=16)
def _dealt(counts: tuple[int, ...], slot: int, steps: int, size: int, world_size: int) -> Deal:
    datasets, _ = _spread(counts)
    slots = (slot + np.arange(steps * size)) % len(datasets)
    return deal(datasets[slots].reshape(steps, size), world_size)


def _exact_shares(shares: Mapping[str, float]) -> dict[str, Fraction]:
    """Shares as fractions, zero shares left out; ``ConfigError`` unless each is in [0, 1] and they sum to 1."""
    wrong = {name: share for name, share in shares.items() if not 0 <= share <= 1}
    if wrong:
        raise ConfigError(f"mixture: expected shares in [0, 1], found {wrong}")
    parts = {name: Fraction(share).limit_denominator(_FINEST_SHARE) for name, share in shares.items()}
    total = sum(parts.values(), start=Fraction(0))
    if total != 1:
        raise ConfigError(
            f"mixture: expected shares that sum to 1, found {float(total):g} from {dict(shares)}; "
            f"change one of them by {float(1 - total):+g}"
        )
    return {name: part for name, part in parts.items() if part}


def _spread(counts: Sequence[int]) -> tuple[Int64s, Int64s]:
    """Spread ``counts[i]`` rows of each dataset over a period, each as evenly as the others allow.

    Row k of n wants the place (k + 1/2) / n; the rows in the order of their places are the schedule.
    """
    datasets = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])
    places = (ranks + 0.5) / np.repeat(counts, counts)
    order = np.lexsort((datasets, places))
    return datasets[order].astype(np.int64), ranks[order].astype(np.int64)
