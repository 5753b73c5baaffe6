"""What the codes and lengths of a dataset look like, from a sample of its shards.

At most :data:`MAX_SHARDS` shards, spread evenly over the dataset, are read, and of those the few columns that are
needed; one shard is in memory at a time. A dataset with fewer shards is read whole. Counts of inputs, tokens and hours are
not made here: the ledger has them exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.codec_report import LevelUsage
from shards.errors import DatasetError
from shards.manifest import ShardEntry
from shards.modality import MEDIA, Modality

MAX_SHARDS = 200
_BINS = 24
_TAIL = 0.99
_ELEMENT = "segments.list.element"
_COLUMNS = ["licence", *(f"{_ELEMENT}.{name}" for name in ("slot", "modality", "text", "levels", "duration_s"))]
_CODES = f"{_ELEMENT}.codes.list.element"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a length is distributed.

    Attributes:
        edges: (bins + 1,) of equal width; the last bin also has everything above it.
        counts: (bins,).
        longest: above the last edge where the tail is long.
    """

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    median: float
    shortest: float
    longest: float

    @property
    def num_observed(self) -> int:
        """Values looked at."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """What a sample of a dataset's shards says.

    Attributes:
        shards_read, num_shards: how much of it was looked at.
        usage: of every level of every modality that occurs.
        licences: of the rows looked at, as they state it; empty where they state none.
    """

    shards_read: int
    num_shards: int
    rows: int
    usage: Mapping[str, tuple[LevelUsage, ...]]
    lengths: tuple[Distribution, ...]
    licences: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.shards_read == self.num_shards


def choose_shards(shards: Sequence[ShardEntry], *, most: int = MAX_SHARDS) -> list[ShardEntry]:
    """At most so many shards, spread evenly, the first among them; the same ones every time."""
    count = min(most, len(shards))
    return [shards[number * len(shards) // count] for number in range(count)]


def read_statistics(folder: Path, shards: Sequence[ShardEntry], *, most: int = MAX_SHARDS) -> DatasetStatistics:
    """Look at a sample of the shards.

    Raises:
        DatasetError: a shard is missing or damaged, or has codes outside the codebook.
    """
    chosen = choose_shards(shards, most=most)
    sums = _Sums()
    for shard in chosen:
        _add_shard(sums, folder / shard.path)
    lengths = [
        make_distribution(name, unit, np.concatenate(parts)) for (name, unit), parts in sorted(sums.lengths.items())
    ]
    usage = {str(m): _usage(sums.codes[m], m) for m in MEDIA if m in sums.codes}
    return DatasetStatistics(
        len(chosen), len(shards), sums.rows, usage, tuple(lengths), dict(sorted(sums.licences.items()))
    )


def make_distribution(name: str, unit: str, values: Values) -> Distribution:
    """Count values in bins of equal width; the longest hundredth goes into the last bin.

    Args:
        values: (n,), one at least.
    """
    low, high = float(values.min()), float(np.quantile(values, _TAIL, method="higher"))
    if not (values % 1).any() and high - low < _BINS:
        edges = np.arange(low, high + 2)
    else:
        edges = np.linspace(low, high, _BINS + 1) if high - low > 1e-6 * max(1.0, high) else np.array([low, low + 1.0])
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    return Distribution(
        name,
        unit,
        tuple(edges.tolist()),
        tuple(counts.tolist()),
        mean=float(values.mean()),
        median=float(np.median(values)),
        shortest=low,
        longest=float(values.max()),
    )


@dataclass(slots=True)
class _Sums:
    rows: int = 0
    codes: dict[Modality, npt.NDArray[np.int64]] = field(default_factory=dict[Modality, npt.NDArray[np.int64]])
    lengths: dict[tuple[str, str], list[Values]] = field(default_factory=dict[tuple[str, str], list[Values]])
    licences: Counter[str] = field(default_factory=Counter[str])

    def add_lengths(self, name: str, unit: str, values: Any) -> None:
        if len(values):
            self.lengths.setdefault((name, unit), []).append(np.asarray(values, np.float64))


def _add_shard(sums: _Sums, path: Path) -> None:
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read(columns=[*_COLUMNS, _CODES])
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{path}: expected a Parquet shard, found {error}; run anygpt-verify on its folder"
        ) from error
    sums.rows += len(table)
    sums.licences.update(licence or "" for licence in table["licence"].to_pylist())
    segments = table["segments"].combine_chunks()
    flat = segments.flatten()
    modality, slot = (np.array(flat.field(name).to_pylist(), object) for name in ("modality", "slot"))
    # A list array's parents say which row a segment is of.
    rows = segments.value_parent_indices().to_numpy(zero_copy_only=False)
    _add_texts(sums, flat.field("text"), slot)
    for medium in MEDIA:
        chosen = modality == medium
        if chosen.any():
            _add_medium(sums, flat.filter(pa.array(chosen)), medium, path)
            if medium is Modality.IMAGE:
                sums.add_lengths("pictures of a sample", "pictures", np.bincount(rows[chosen], minlength=len(table)))


def _add_texts(sums: _Sums, texts: pa.Array, slots: npt.NDArray[Any]) -> None:
    lengths = pc.call_function("utf8_length", [texts])
    is_text = lengths.is_valid().to_numpy(zero_copy_only=False)
    counted = lengths.fill_null(0).to_numpy(zero_copy_only=False)
    for slot in sorted(set(slots[is_text])):
        sums.add_lengths(f"{slot}", "characters", counted[is_text & (slots == slot)])


def _add_medium(sums: _Sums, segments: pa.Array, medium: Modality, path: Path) -> None:
    if medium.is_sound:
        sums.add_lengths(
            f"{medium}", "seconds", segments.field("duration_s").drop_null().to_numpy(zero_copy_only=False)
        )
    size = medium.rate.codebook_size
    levels = segments.field("levels").to_numpy(zero_copy_only=False)
    for count in sorted({int(level) for level in levels}):
        codes = segments.filter(pa.array(levels == count)).field("codes").flatten().to_numpy()
        if codes.size and int(codes.max()) >= size:
            raise DatasetError(
                f"{path}: expected {medium} codes below {size}, found {int(codes.max())}; run anygpt-verify on its folder"
            )
        grid = codes.reshape(-1, count)
        total = sums.codes.get(medium, np.zeros((count, size), np.int64))
        if len(total) < count:
            total = np.concatenate([total, np.zeros((count - len(total), size), np.int64)])
        for level in range(count):
            total[level] += np.bincount(grid[:, level], minlength=size)
        sums.codes[medium] = total


def _usage(counts: npt.NDArray[np.int64], modality: Modality) -> tuple[LevelUsage, ...]:
    size = modality.rate.codebook_size
    return tuple(
        LevelUsage(level, size, tuple(np.sort(row[row > 0])[::-1].tolist()))
        for level, row in enumerate(counts, start=1)
    )
