"""Which row is read when: a pure function from a position in an endless stream to a row of a dataset.

Positions are cut into *periods*, the shortest stretch in which every share is a whole number of rows (100 for shares
in per cent). Every period holds exactly the shares, spread as evenly as rows allow, so any stretch of the stream is
within a few rows of them. The n-th row a dataset gives is row ``permute(n mod size)`` of its epoch ``n // size``; the
permutation is a keyed bijection of the row numbers (a Feistel network with cycle walking), so a dataset of a billion
rows costs no memory and every epoch has an order of its own.

Nothing here knows steps, ranks or workers, which is why a checkpoint stores one integer. The one thing ranks need is
:meth:`Mixture.batch`: the positions of a global batch in a permuted order, because the schedule is periodic and ranks
that take every k-th position of it would each see one dataset only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError
from shards.manifest import fingerprint

Int64s = npt.NDArray[np.int64]
_UInt64s = npt.NDArray[np.uint64]

LONGEST_PERIOD = 1_000_000
_FINEST_SHARE = 10_000
# Odd constants of splitmix64 (Steele, Lea, Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUND_CONSTANTS = np.arange(1, 7, dtype=np.uint64) * _GOLDEN


@dataclass(frozen=True)
class Mixture:
    """Datasets, what each gives, and in which order.

    Attributes:
        shares: dataset -> part of all rows; they sum to 1. Decimals are taken as written (0.05 is 1/20).
        sizes: dataset -> its number of rows.
        seed: another seed is another order of the same rows.
    """

    shares: Mapping[str, float]
    sizes: Mapping[str, int]
    seed: int = 0
    names: tuple[str, ...] = field(init=False)
    period: int = field(init=False)
    _counts: Int64s = field(init=False, repr=False)  # (datasets,) rows of each dataset in a period
    _dataset_of_slot: Int64s = field(init=False, repr=False)  # (period,)
    _rank_of_slot: Int64s = field(init=False, repr=False)  # (period,) how many rows of that dataset came before
    _keys: _UInt64s = field(init=False, repr=False)  # (datasets,)

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
            "_keys": np.array([_key(self.seed, name) for name in parts], np.uint64),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides which row is read when."""
        return fingerprint({"shares": dict(self.shares), "sizes": dict(self.sizes), "seed": self.seed})

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
        wanted = np.asarray(positions, np.int64)
        if wanted.size and int(wanted.min()) < 0:
            raise IndexError(f"expected positions from 0 on, found {int(wanted.min())}")
        periods, slots = np.divmod(wanted, self.period)
        datasets = self._dataset_of_slot[slots]
        nth = periods * self._counts[datasets] + self._rank_of_slot[slots]
        rows = np.empty_like(nth)
        for index, name in enumerate(self.names):
            chosen = datasets == index
            epochs, offsets = np.divmod(nth[chosen], self.sizes[name])
            rows[chosen] = permute(offsets, self.sizes[name], keys=_mix(self._keys[index] + _as_keys(epochs)))
        return datasets, rows

    def batch(self, step: int, size: int) -> Int64s:
        """Positions ``[step * size, (step + 1) * size)`` of a global batch, in an order that depends on the step.

        Ranks take equal stretches of what is returned. Without the permutation a stretch, or every k-th position, of
        the evenly spread schedule could hold one dataset only.
        """
        key = _mix(np.array([_key(self.seed, "batch order")], np.uint64) + _as_keys(np.array([step])))
        order = permute(np.arange(size, dtype=np.int64), size, keys=np.broadcast_to(key, size))
        return step * size + order

    def rows_drawn(self, stop: int) -> dict[str, int]:
        """Rows each dataset gives to positions ``[0, stop)``."""
        periods, rest = divmod(stop, self.period)
        begun = np.bincount(self._dataset_of_slot[:rest], minlength=len(self.names))
        drawn = periods * self._counts + begun
        return {name: int(count) for name, count in zip(self.names, drawn, strict=True)}

    def epochs(self, stop: int) -> dict[str, float]:
        """How often each dataset is read in positions ``[0, stop)``; 2.5 is two whole epochs and a half."""
        return {name: count / self.sizes[name] for name, count in self.rows_drawn(stop).items()}


def permute(offsets: Int64s, size: int, *, keys: _UInt64s) -> Int64s:
    """Send each offset to its place in a keyed permutation of ``range(size)``.

    A Feistel network on pairs (left, right) of ``range(a) * range(b)`` with ``a * b`` just above ``size``; what falls
    outside ``range(size)`` goes through it again, which keeps it a bijection (cycle walking, Black & Rogaway 2002).

    Args:
        offsets: (n,) in ``[0, size)``.
        keys: (n,) the key of each offset; offsets with equal keys belong to one permutation.

    Returns:
        (n,) in ``[0, size)``.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    found = offsets.astype(np.uint64)
    walking = np.arange(len(offsets))
    while walking.size:
        found[walking] = _feistel(found[walking], np.uint64(a), np.uint64(b), keys[walking])
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)


def _feistel(values: _UInt64s, a: np.uint64, b: np.uint64, keys: _UInt64s) -> _UInt64s:
    left, right = np.divmod(values, b)
    for number, round_constant in enumerate(_ROUND_CONSTANTS):
        round_keys = keys + round_constant
        if number % 2 == 0:
            left = (left + _mix(right + round_keys) % a) % a
        else:
            right = (right + _mix(left + round_keys) % b) % b
    return left * b + right


def _mix(values: _UInt64s) -> _UInt64s:
    """splitmix64's finalizer: every bit of the input moves about half the bits of the output."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def _as_keys(numbers: Int64s) -> _UInt64s:
    return numbers.astype(np.uint64) * _GOLDEN


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


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


def _spread(counts: list[int]) -> tuple[Int64s, Int64s]:
    """Spread ``counts[i]`` rows of each dataset over a period, each as evenly as the others allow.

    Row k of n wants the place (k + 1/2) / n; the rows in the order of their places are the schedule.
    """
    datasets = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])
    places = (ranks + 0.5) / np.repeat(counts, counts)
    order = np.lexsort((datasets, places))
    return datasets[order].astype(np.int64), ranks[order].astype(np.int64)
