"""Which way each document of a batch goes: text to image, image to text, a dialogue, ...

The direction of a document stands beside its shard, in the sidecar, which no step of training needs. Here the four columns
that are needed are read when rows of a shard are first looked up, and kept as compact arrays (10 bytes a document), the most
recently used first, up to a bound. The trainer looks a batch up in a thread while the device computes, so even a sidecar
in a bucket costs no time of a step, unless it takes longer than that.

The names are those of the manifests, so that every process counts into the same table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.open_shard import buffer_view
from shards.packed import Int32s, sidecar_path
from shards.reader import PackedDataset
from shards.schedule import AnyMixture
from shards.storage import arrow_source

UNKNOWN = "unknown"
"""Of documents that no sidecar tells about; always the first name."""
MOST_BYTES = 1 << 30
_COLUMNS = ["row", "start", "stop", "direction"]


@dataclass(frozen=True, slots=True, eq=False)
class _Placements:
    """Of one shard: row r has documents ``[offsets[r], offsets[r + 1])``, each with its ids and its direction."""

    offsets: npt.NDArray[np.int64]
    starts: Int32s
    stops: Int32s
    directions: npt.NDArray[np.uint8]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.offsets, self.starts, self.stops, self.directions))


class Directions:
    """Directions of rows by their position in a mixture. One thread at a time."""

    def __init__(self, mixture: AnyMixture, datasets: Sequence[PackedDataset], *, most_bytes: int = MOST_BYTES) -> None:
        """
        Args:
            datasets: in the order of ``mixture.names``.
            most_bytes: of what is kept of sidecars.
        """
        self._mixture, self._datasets, self._most_bytes = mixture, tuple(datasets), most_bytes
        # A dataset whose manifest tells no directions is not asked for any.
        self._told = [sorted(dataset.manifest.extra.get("tokens_by_direction") or {}) for dataset in datasets]
        found = {name for told in self._told for name in told} - {UNKNOWN}
        self.names = (UNKNOWN, *sorted(found)[:255])
        self._kept: OrderedDict[tuple[int, int], _Placements] = OrderedDict()
        self._num_bytes = 0

    def of_rows(self, positions: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint8]:
        """(rows, length) index into :attr:`names` of every id; padding is unknown.

        Raises:
            DatasetError: a sidecar is damaged.
        """
        out = np.zeros((len(positions), length), np.uint8)
        numbers, rows = self._mixture.locate_many(positions)
        for place, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            if not self._told[number]:
                continue
            shard, local = self._datasets[number].locate([row])
            found = self._placements(number, int(shard[0]))
            index = int(local[0])
            for document in range(found.offsets[index], found.offsets[index + 1]):
                out[place, found.starts[document] : found.stops[document]] = found.directions[document]
        return out

    def _placements(self, number: int, shard: int) -> _Placements:
        key = number, shard
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        entry = self._datasets[number].manifest.shards[shard]
        found = _read(sidecar_path(self._datasets[number].folder / entry.path), entry.num_rows, self.names)
        self._kept[key] = found
        self._num_bytes += found.num_bytes
        while self._num_bytes > self._most_bytes and len(self._kept) > 1:
            self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return found


def _read(path: Path, num_rows: int, names: Sequence[str]) -> _Placements:
    try:
        with pq.ParquetFile(arrow_source(path), read_dictionary=["direction"]) as file:
            table = file.read(_COLUMNS, use_threads=False).combine_chunks()
        rows, starts, stops = (buffer_view(_one(table[name])) for name in _COLUMNS[:3])
        encoded = _one(table["direction"].unify_dictionaries())
    except FileNotFoundError:
        empty = np.zeros(0, np.int32)
        return _Placements(np.zeros(num_rows + 1, np.int64), empty, empty, np.zeros(0, np.uint8))
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{path}: expected the direction of every document, found {error}; copy it again, or set log.directions=false"
        ) from error
    order = np.argsort(rows, kind="stable")
    known = {name: number for number, name in enumerate(names)}
    codes = np.array([known.get(name, 0) for name in encoded.dictionary.to_pylist()] or [0], np.uint8)
    directions = codes[buffer_view(encoded.indices)] if len(encoded) else np.zeros(0, np.uint8)
    offsets = np.searchsorted(rows[order], np.arange(num_rows + 1))
    return _Placements(offsets, starts[order], stops[order], directions[order])


def _one(column: Any) -> Any:
    """A column of a table without chunks."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
