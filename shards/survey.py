"""Numbers of a dataset that its manifest does not hold: how long, how full, how silent.

Of a small dataset everything is looked at. Of a large one, shards spread evenly over it, and of each a few runs of rows,
or the beginnings of a few row groups: the same ones every time, so that two pages of one dataset agree. What is read has
a bound, so a page of 300 million samples opens in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.inspection import read_placements, spread
from shards.reader import PackedDataset

MAX_ROWS = 2048
MAX_SHARDS = 32

_RUN = 16
_SIDECAR = ["row", "start", "dataset", "direction"]

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One number of many things.

    Attributes:
        title: of its chart, e.g. ``Fill of rows``; ``part`` names one of several charts of that title.
        unit: of the number, e.g. ``ids``.
        things: what is counted, e.g. ``rows``.
        values: (n,) one per thing; without those that are not known.
        whole: the values are counts.
    """

    title: str
    part: str
    unit: str
    things: str
    values: Numbers
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Survey:
    """What was looked at, and what was found.

    Attributes:
        looked_at, total: rows or samples.
        shards_looked_at, shards: files.
        tokens: dataset -> modality -> ids, of the rows looked at; packed only.
    """

    looked_at: int
    total: int
    shards_looked_at: int
    shards: int
    measured: tuple[Measured, ...]
    tokens: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    @property
    def is_whole(self) -> bool:
        """Whether everything was looked at."""
        return self.looked_at == self.total


def survey_packed(dataset: PackedDataset, *, max_rows: int = MAX_ROWS, max_shards: int = MAX_SHARDS) -> Survey:
    """Fill, documents per row, and length, media and tokens of documents.

    Raises:
        DatasetError: a shard that is looked at is missing or damaged.
    """
    shards, total = dataset.manifest.shards, dataset.num_rows
    chosen = spread(len(shards), max_shards)
    first_rows = list(accumulate((shard.num_rows for shard in shards), initial=0))
    everything = len(chosen) == len(shards) and total <= max_rows
    each = max(_RUN, max_rows // max(1, len(chosen)))
    parts = [
        _rows_of(dataset, number, first_rows[number], shards[number].num_rows if everything else each)
        for number in chosen
        if shards[number].num_rows
    ]
    if not parts:
        return Survey(0, total, 0, len(shards), ())
    fill, documents = np.concatenate([part.fill for part in parts]), np.concatenate([part.documents for part in parts])
    lengths, media = np.concatenate([part.lengths for part in parts]), np.concatenate([part.media for part in parts])
    directions = [direction for part in parts for direction in part.directions]
    measured = [
        Measured("Fill of rows", "", "%", "rows", fill * 100, whole=False),
        Measured("Documents per row", "", "documents", "rows", documents),
        Measured("Media per document", "", "media", "documents", media),
        *_by_direction(lengths, directions),
    ]
    return Survey(len(fill), total, len(parts), len(shards), tuple(measured), _add_up(part.tokens for part in parts))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Of the rows of one shard: (rows,) fill and documents; (documents,) lengths, media and directions; tokens."""

    fill: Numbers
    documents: Numbers
    lengths: Numbers
    media: Numbers
    directions: list[str]
    tokens: dict[str, dict[str, int]]


def _rows_of(dataset: PackedDataset, number: int, first_row: int, wanted: int) -> _Rows:
    entry = dataset.manifest.shards[number]
    local = _runs(entry.num_rows, wanted)
    rows = local + first_row
    num_tokens = dataset.num_tokens(rows)
    starts = [dataset.document_starts(row) for row in rows.tolist()]
    counts = np.array([len(of_row) for of_row in starts])
    begins = np.concatenate(starts)
    # A document ends where the next begins, the last of a row where its padding does.
    ends = np.append(begins[1:], 0)
    ends[np.cumsum(counts) - 1] = num_tokens
    place = np.repeat(np.arange(len(rows)), counts)
    sources, directions = _told(dataset.folder / entry.path, local, place, begins)
    by_modality, media = _modalities_of(dataset, rows, place * dataset.sequence_length, begins, ends)
    tokens: dict[str, dict[str, int]] = {}
    for source in dict.fromkeys(sources):
        sums = by_modality[np.array([name == source for name in sources])].sum(axis=0).tolist()
        names = dataset.vocabulary.modality_names()
        tokens[source] = {name: count for name, count in zip(names, sums, strict=True) if count}
    return _Rows(num_tokens / dataset.sequence_length, counts, ends - begins, media, directions, tokens)


def _modalities_of(
    dataset: PackedDataset, rows: Numbers, base: Numbers, begins: Numbers, ends: Numbers
) -> tuple[Numbers, Numbers]:
    """(documents, modalities) ids, and (documents,) media, told by running sums over all ids of the rows."""
    ids = dataset.gather(rows).reshape(-1)
    index = dataset.vocabulary.modality_index()[ids]
    openings = np.isin(ids, [block.start_id for block in dataset.vocabulary.blocks.values()])

    def count(flags: npt.NDArray[np.bool_]) -> Numbers:
        sums = np.concatenate([[0], np.cumsum(flags)])
        return sums[base + ends] - sums[base + begins]

    modalities = range(len(dataset.vocabulary.modality_names()))
    return np.stack([count(index == modality) for modality in modalities], axis=1), count(openings)


def _told(shard: Path, local: Numbers, place: Numbers, begins: Numbers) -> tuple[list[str], list[str]]:
    """Dataset and direction of each document; empty texts where no sidecar tells."""
    told: dict[tuple[int, int], tuple[str, str]] = {}
    if (found := read_placements(shard, local.tolist(), _SIDECAR)) is not None:
        columns = (found[name].to_pylist() for name in _SIDECAR)
        told = {(row, start): (dataset, direction) for row, start, dataset, direction in zip(*columns, strict=True)}
    keys = zip(local[place].tolist(), begins.tolist(), strict=True)
    pairs = [told.get(key, ("", "")) for key in keys]
    return [source for source, _ in pairs], [direction for _, direction in pairs]


def _runs(total: int, wanted: int) -> npt.NDArray[np.int64]:
    """Rows of a shard, in runs of 16 that are spread evenly: what is read together lies together."""
    if wanted >= total:
        return np.arange(total)
    runs = np.array(spread(-(-total // _RUN), max(1, wanted // _RUN)))
    rows = (runs[:, None] * _RUN + np.arange(_RUN)).reshape(-1)
    return rows[rows < total]


def _by_direction(lengths: Numbers, directions: Sequence[str]) -> Iterator[Measured]:
    told = np.array(directions, dtype=object)
    for direction in sorted({*directions}):
        yield Measured("Length of documents", direction, "ids", "documents", lengths[told == direction])


def _add_up(parts: Iterator[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for source, counts in part.items():
            sums = total.setdefault(source, {})
            for modality, count in counts.items():
                sums[modality] = sums.get(modality, 0) + count
    return dict(sorted(total.items()))
