"""Rows of a mixture at memory speed, for any trainer: planned as arrays, copied once, from the mapped file into a buffer.

What costs in a loader is Python around each row. Here positions become file numbers and rows in blocks of thousands
(:meth:`MixedRows.plan`), and :meth:`MixedRows.gather` does little a row but the copy. No worker processes: they make fast
loaders slower, for batches must travel between processes. Numpy alone; a trainer adds its thread and its device.
What is planned is also what must be fetched soon, where files lie in an object store (:meth:`MixedRows.read_ahead`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from shards.cache_folder import RemoteShard
from shards.open_shard import OpenShard
from shards.permutation import Int64s
from shards.reader import PackedDataset
from shards.schedule import AnyMixture
from shards.vocabulary import TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows to read, in order.

    Attributes:
        positions: (n,) of the mixture.
        datasets: (n,) indices into the mixture's names.
        places: (2 n,) number of a file, counted over all datasets, and row of that file, in turn: what is read of a batch
            becomes Python numbers at once and when it is needed. Thousands made ahead would be cold by then.
    """

    positions: Int64s
    datasets: Int64s
    places: Int64s

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shards(self) -> Int64s:
        """(n,) numbers of files."""
        return self.places[::2]

    @property
    def rows(self) -> Int64s:
        """(n,) rows of those files."""
        return self.places[1::2]


class MixedRows:
    """The rows of a mixture's datasets by position. Files are opened, and checked, when they are first read from."""

    def __init__(self, mixture: AnyMixture, datasets: Sequence[PackedDataset]) -> None:
        """
        Args:
            datasets: in the order of ``mixture.names``.

        Raises:
            ValueError: they are not as many, or not as long, as the mixture says.
        """
        expected = [mixture.sizes[name] for name in mixture.names]
        found = [dataset.num_rows for dataset in datasets]
        if expected != found:
            raise ValueError(f"expected datasets of {expected} rows, in the order of the mixture, found {found}")
        self._mixture, self._datasets = mixture, tuple(datasets)
        self._first_shards = [0, *accumulate(dataset.num_shards for dataset in datasets)]
        self._shards: list[OpenShard | None] = [None] * self._first_shards[-1]
        # Of files that have been checked from end to end, whose rows need no further look.
        self._ids: list[TokenIds | None] = [None] * self._first_shards[-1]
        # Rows counted over all datasets, one after the other.
        self._first_of_dataset = np.cumsum([0, *expected])
        sizes = [shard.num_rows for dataset in datasets for shard in dataset.manifest.shards]
        self._first_of_shard = np.cumsum([0, *sizes[:-1]])
        self._caches = list(
            {id(cache): cache for cache in (one.cache for one in datasets) if cache is not None}.values()
        )
        self._forget = [_Forget(self._shards, self._ids, first) for first in self._first_shards[:-1]]
        for dataset, forget in zip(datasets, self._forget, strict=True):
            if dataset.cache is not None:
                dataset.when_dropped(forget.shard)

    @property
    def is_remote(self) -> bool:
        """Whether any of the datasets lies in an object store."""
        return bool(self._caches)

    def read_ahead(self, plans: Sequence[Rows]) -> None:
        """Have the files of remote datasets fetched in the order in which these rows are read; others are let go.

        Args:
            plans: what is read now and what follows; none: nothing any more.
        """
        if not self._caches:
            return
        wanted: dict[int, list[RemoteShard]] = {id(cache): [] for cache in self._caches}
        for number in dict.fromkeys(chain.from_iterable(rows.shards.tolist() for rows in plans)):
            dataset, local = self._file(number)
            if dataset.cache is not None:
                wanted[id(dataset.cache)].append(dataset.remote_shard(local))
        for cache in self._caches:
            cache.read_ahead(wanted[id(cache)])

    def plan(self, positions: npt.ArrayLike) -> Rows:
        """Where the rows of some positions lie; a few thousand at a time cost a tenth of a microsecond each."""
        wanted = np.asarray(positions, np.int64).reshape(-1)
        return self.find(*self._mixture.locate_many(wanted), positions=wanted)

    def find(self, datasets: Int64s, rows: Int64s, *, positions: Int64s | None = None) -> Rows:
        """Where these rows of these datasets lie.

        Args:
            datasets: (n,) indices into the mixture's names.
            rows: (n,) of those datasets.
            positions: (n,) that they have in the mixture; from 0 on when None.
        """
        counted = self._first_of_dataset[datasets] + rows
        shards = np.searchsorted(self._first_of_shard, counted, side="right") - 1
        places = np.empty(2 * len(rows), np.int64)
        places[::2] = shards
        np.subtract(counted, self._first_of_shard[shards], out=places[1::2])
        return Rows(np.arange(len(rows)) if positions is None else positions, datasets, places)

    def gather(self, rows: Rows, out: TokenIds, *, start: int = 0) -> TokenIds:
        """Copy rows into a buffer, in order, until it is full.

        Args:
            out: (n, sequence_length) of the stored or any wider integer type.
            start: the first of the rows.

        Returns:
            ``out``.

        Raises:
            ValueError: fewer rows from ``start`` on than the buffer holds.
        """
        found = rows.places[2 * start : 2 * (start + len(out))].tolist()
        if len(found) < 2 * len(out):
            raise ValueError(f"expected {len(out)} rows from {start} on, found {len(found) // 2}")
        numbers = iter(found)
        ids, place = self._ids, 0
        for shard, row in zip(numbers, numbers, strict=True):
            stored = ids[shard]
            out[place] = stored[row] if stored is not None else self._checked(shard, row)
            place += 1  # noqa: SIM113 - counting by hand costs less than a third iterator
        return out

    def shard(self, number: int) -> OpenShard:
        """The mapped file of a number in :attr:`Rows.shards`; its ids are checked by :meth:`OpenShard.ids` alone."""
        found = self._shards[number]
        if found is None:
            dataset, local = self._file(number)
            found = self._shards[number] = dataset.shard(local)
        return found

    def _file(self, number: int) -> tuple[PackedDataset, int]:
        """The dataset of a file, and the file's number in it."""
        index = bisect_right(self._first_shards, number) - 1
        return self._datasets[index], number - self._first_shards[index]

    def _checked(self, number: int, row: int) -> TokenIds:
        shard = self.shard(number)
        found = shard.ids(row)
        if not shard.unchecked.count:
            self._ids[number] = shard.token_ids
        return found


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class _Forget:
    """Lets go of the maps of one dataset's files."""

    shards: list[OpenShard | None]
    ids: list[TokenIds | None]
    first: int

    def shard(self, number: int) -> None:
        self.shards[self.first + number] = self.ids[self.first + number] = None
