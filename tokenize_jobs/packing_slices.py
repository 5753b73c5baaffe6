"""Which samples a packing unit reads: runs of rows of the datasets' shards, told by their manifests alone.

Runs are cut from the datasets' own row numbers, never from the cluster. A filler is dealt to the units in equal runs, in
order: unit 3 of 10 has its fourth tenth. So no two units use one of its samples, and none has to know the others.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.manifest import Manifest
from shards.records import TokenizedSample, table_to_samples
from shards.storage import arrow_source

Sources = Sequence[tuple[Path, Manifest]]
"""Folders of sample shards and their manifests, one after the other."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``[start, stop)`` of one sample shard of a dataset in ``folder``, drawn for the ``draw``-th time."""

    dataset: str
    folder: Path
    shard: str
    draw: int
    start: int
    stop: int


def plan_slices(
    sources: Sources, *, draws: int, unit_documents: int, limit: int | None = None
) -> list[tuple[Slice, ...]]:
    """Cut ``draws`` x samples, draw after draw, into equal runs of at most ``unit_documents``.

    Args:
        limit: use the first so many samples only.
    """
    total = _num_samples(sources, limit) * draws
    return _cut(sources, total, num_runs=-(-total // unit_documents), limit=limit)


def deal_slices(sources: Sources, *, num_units: int, limit: int | None = None) -> list[tuple[Slice, ...]]:
    """Every sample to one of ``num_units`` units, in order, shares as equal as they can be; some empty if there are few."""
    return _cut(sources, _num_samples(sources, limit), num_runs=num_units, limit=limit)


def read_samples(slices: Iterable[Slice]) -> Iterator[tuple[Slice, TokenizedSample]]:
    """The samples of the slices, one row group in memory at a time.

    Raises:
        DatasetError: a shard is missing or no Parquet file.
    """
    for run in slices:
        for table in _read_rows(run.folder / run.shard, run.start, run.stop):
            for sample in table_to_samples(table):
                yield run, sample


def num_documents(slices: Iterable[Slice]) -> int:
    """How many samples, counted once per draw."""
    return sum(run.stop - run.start for run in slices)


def _num_samples(sources: Sources, limit: int | None) -> int:
    found = sum(manifest.num_rows for _, manifest in sources)
    return found if limit is None else min(limit, found)


def _cut(sources: Sources, total: int, *, num_runs: int, limit: int | None) -> list[tuple[Slice, ...]]:
    shards = [(folder, manifest.name, shard) for folder, manifest in sources for shard in manifest.shards]
    starts = [0, *itertools.accumulate(shard.num_rows for _, _, shard in shards)]
    num_samples = _num_samples(sources, limit)
    bounds = [total * number // num_runs for number in range(num_runs + 1)] if num_runs else []

    def slices(begin: int, end: int) -> Iterator[Slice]:
        while begin < end:
            draw, sample = divmod(begin, num_samples)
            at = bisect.bisect_right(starts, sample) - 1
            stop = min(starts[at + 1], num_samples, sample + end - begin)
            folder, name, shard = shards[at]
            yield Slice(name, folder, shard.path, draw, sample - starts[at], stop - starts[at])
            begin += stop - sample

    return [tuple(slices(begin, end)) for begin, end in itertools.pairwise(bounds)]


def _read_rows(path: Path, start: int, stop: int) -> Iterator[pa.Table]:
    """Rows ``[start, stop)`` of a Parquet file, one row group at a time."""
    try:
        opened = pq.ParquetFile(arrow_source(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{path}: expected a shard of samples, found {error}; run anygpt-verify on its folder"
        ) from error
    with opened as file:
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            begin, end = max(start, first), min(stop, first + size)
            if begin < end:
                yield file.read_row_group(group).slice(begin - first, end - begin)
            first += size
