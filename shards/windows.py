"""Reading a dataset a few files at a time, and still in a random order: what a dataset in an object store is read by.

A permutation of all rows touches every file within the first few batches, which is fine where files are mapped and is
not where each must be fetched first. So an epoch permutes twice: the *order of the shards*, cut into windows of a few
shards; then the *rows within each window*. Rows of a window come from its files alone, a run of rows that crosses a
border from those of two windows. Both permutations are keyed by epoch, so shards meet other shards every time.

Like the one-level order it is a pure function of (epoch, row of the epoch) and a bijection of the rows; it costs memory
by the shard. Windows of an epoch have equally many shards, give or take one, so none is left with a single file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError
from shards.manifest import fingerprint
from shards.permutation import Int64s, Keys, numbered, permute, permute_each

SHARDS_PER_WINDOW = 8
"""As a default. More mixes better, and needs a larger cache and a longer start."""

_TABLE_CELLS = 1 << 20
# Told apart from every window's number, which a dataset of fewer than 2**62 shards cannot have.
_ORDER_OF_SHARDS = np.int64(2**62)


@dataclass(frozen=True)
class Windows:
    """How a dataset is cut.

    Attributes:
        shard_rows: rows of each shard, in the manifest's order.
        shards_per_window: at most; 1 reads one file after the other.

    Raises:
        ConfigError: less than one shard a window, or no shard.
    """

    shard_rows: Sequence[int]
    shards_per_window: int = SHARDS_PER_WINDOW

    def __post_init__(self) -> None:
        object.__setattr__(self, "shard_rows", tuple(self.shard_rows))
        if self.shards_per_window < 1 or not self.shard_rows or min(self.shard_rows) < 0:
            raise ConfigError(
                f"windows: expected shards, and at least one of them in a window, found {len(self.shard_rows)} shards and "
                f"shards_per_window {self.shards_per_window}"
            )

    @cached_property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(self.shard_rows)

    @property
    def num_windows(self) -> int:
        """Of an epoch."""
        return -(-len(self.shard_rows) // self.shards_per_window)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what decides the order."""
        return fingerprint([list(self.shard_rows), self.shards_per_window])

    def rows(self, epochs: Int64s, offsets: Int64s, *, keys: Keys) -> Int64s:
        """The rows that are read at some places of some epochs.

        Args:
            epochs: (n,) in any order.
            offsets: (n,) places within the epochs, in ``[0, num_rows)``.
            keys: (n,) one for each epoch, equal where the epochs are.

        Returns:
            (n,) in ``[0, num_rows)``, counted over the shards in the manifest's order.
        """
        found = np.empty_like(offsets)
        _, firsts, numbers = np.unique(epochs, return_index=True, return_inverse=True)
        at_once = max(1, _TABLE_CELLS // len(self.shard_rows))
        for start in range(0, len(firsts), at_once):
            part = firsts[start : start + at_once]
            chosen = slice(None) if len(part) == len(firsts) else (numbers >= start) & (numbers < start + at_once)
            found[chosen] = self._rows(numbers[chosen] - start, offsets[chosen], keys[part])
        return found

    def shards_of(self, rows: npt.ArrayLike) -> Int64s:
        """(n,) the shards that hold these rows."""
        return np.searchsorted(np.cumsum(self.shard_rows), np.asarray(rows, np.int64), side="right").astype(np.int64)

    def _rows(self, epochs: Int64s, offsets: Int64s, keys: Keys) -> Int64s:
        """:meth:`rows` where ``epochs`` are indices into ``keys``."""
        shards, windows, total = len(self.shard_rows), self.num_windows, self.num_rows
        sizes = np.array(self.shard_rows, np.int64)
        order = _orders(shards, keys)
        # Ends of the shards in the order in which they are read, counted over all these epochs, one after the other.
        ends = (sizes[order].cumsum(axis=1) + np.arange(len(keys))[:, None] * total).reshape(-1)
        last = (np.arange(1, windows + 1) * shards // windows - 1) + np.arange(len(keys))[:, None] * shards
        window_ends = ends[last].reshape(-1)
        places = epochs * total + offsets
        window = np.searchsorted(window_ends, places, side="right")
        window_starts = np.concatenate([[0], window_ends[:-1]])[window]
        window_sizes = window_ends[window] - window_starts
        own = numbered(keys[epochs], (window - epochs * windows).astype(np.int64))
        within = permute_each(places - window_starts, window_sizes, *_sides(window_sizes), keys=own)
        read = window_starts + within
        slot = np.searchsorted(ends, read, side="right")
        shard = order.reshape(-1)[slot]
        # Rows before the shard's end, wherever the shard stands.
        return np.cumsum(sizes)[shard] - (ends[slot] - read)


def _orders(shards: int, keys: Keys) -> Int64s:
    """(epochs, shards) the order in which each epoch reads its shards."""
    own = numbered(keys, np.full(len(keys), _ORDER_OF_SHARDS))
    numbers = np.tile(np.arange(shards), len(keys))
    return permute(numbers, shards, keys=np.repeat(own, shards)).reshape(len(keys), shards)


def _sides(sizes: Int64s) -> tuple[Keys, Keys]:
    """:func:`shards.permutation.sides` of many sizes; exact below 2**52."""
    one = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.int64)
    one -= (one - 1) * (one - 1) >= sizes
    one += one * one < sizes
    return one.astype(np.uint64), (-(-sizes // one)).astype(np.uint64)
