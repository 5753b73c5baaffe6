"""The order in which each dataset gives its rows, in whatever company.

The n-th row a dataset gives belongs to its epoch ``n // size``; there it is the ``n % size``-th of a permutation of all
rows that is keyed by seed, name and epoch. Where files must be fetched before they are read, the permutation has two
levels (:mod:`shards.windows`). Nothing is drawn and nothing is remembered: mixtures and schedules say which dataset has
its turn, this says what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError
from shards.permutation import Int64s, Keys, key_of, numbered, permute_each, sides
from shards.windows import Windows


class RowOrder:
    """Rows of several datasets by how many each has given before."""

    def __init__(
        self, names: Sequence[str], sizes: Mapping[str, int], seed: int, windows: Mapping[str, Windows]
    ) -> None:
        """
        Args:
            sizes: dataset -> rows, of every name.
            windows: of those datasets that are read through windows.

        Raises:
            ConfigError: windows of another number of rows than the dataset has.
        """
        for name in names:
            if name in windows and windows[name].num_rows != sizes[name]:
                raise ConfigError(
                    f"mixture: expected windows over the {sizes[name]:,} rows of {name!r}, found shards of "
                    f"{windows[name].num_rows:,}"
                )
        self._keys = np.array([key_of(seed, name) for name in names], np.uint64)
        self._sizes = np.array([sizes[name] for name in names], np.int64)
        self._sides = np.array([sides(sizes[name]) for name in names], np.uint64).reshape(-1, 2).T.copy()
        self._windows = {number: windows[name] for number, name in enumerate(names) if name in windows}

    def rows(self, datasets: Int64s, nth: Int64s) -> Int64s:
        """(n,) the rows that these datasets give as their ``nth``, each counted from 0 over all epochs."""
        sizes = self._sizes[datasets]
        epochs = nth // sizes
        offsets = nth - epochs * sizes
        keys = self._keys_of(datasets, epochs)
        if not self._windows:
            return permute_each(offsets, sizes, *self._sides[:, datasets], keys=keys)
        rows = np.empty_like(offsets)
        plain = ~np.isin(datasets, list(self._windows))
        rows[plain] = permute_each(offsets[plain], sizes[plain], *self._sides[:, datasets[plain]], keys=keys[plain])
        for number, windows in self._windows.items():
            mine = datasets == number
            if mine.any():
                rows[mine] = windows.rows(epochs[mine], offsets[mine], keys=keys[mine])
        return rows

    def _keys_of(self, datasets: Int64s, epochs: Int64s) -> Keys:
        """(n,) the key of each epoch of each dataset; as a rule few epochs are read at a time, so a table has them all."""
        if not epochs.size:
            return np.empty(0, np.uint64)
        first, last = int(epochs.min()), int(epochs.max())
        if (last - first) * len(self._keys) > epochs.size:
            return numbered(self._keys[datasets], epochs)
        table = numbered(self._keys[:, None], np.arange(first, last + 1))
        return table[datasets, epochs - first] if last > first else table[:, 0][datasets]


def as_positions(positions: npt.ArrayLike) -> Int64s:
    """Positions of a mixture as an array.

    Raises:
        IndexError: if one is negative.
    """
    wanted = np.asarray(positions, np.int64)
    if wanted.size and int(wanted.min()) < 0:
        raise IndexError(f"expected positions from 0 on, found {int(wanted.min())}")
    return wanted


def window_facts(windows: Mapping[str, Windows], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What windows add to a mixture's fingerprint: nothing, where none of its datasets has any."""
    found = {name: windows[name].fingerprint for name in names if name in windows}
    return {"windows": found} if found else {}
