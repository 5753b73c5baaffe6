"""Sample ids that are there twice, among hundreds of millions, without holding them as strings.

Each shard gives the sorted 64-bit hashes of its ids: 8 bytes a sample, 2.4 GB for 300 million. They are compared in 16
ranges of hashes, so that what is merged and sorted at a time is a sixteenth of them again. Equal hashes are no proof (among
300 million ids one pair of strangers is to be expected by chance), so the few shards that have them are read once more and
the strings compared: that keeps the candidates alone, at most :data:`MAX_CANDIDATES` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

RANGES = 16
MAX_CANDIDATES = 1_000_000
"""Different hashes that are looked into; more say that whole shards are there twice, and naming a million says enough."""


def hash_strings(strings: Any) -> Hashes:
    """(n,) hashes of an Arrow array of strings; equal strings have equal ones in every process and on every machine.

    Each byte, plus one, is multiplied with a fixed 64-bit number of its place; the hash is their sum. Strings that differ
    have the same one with a probability of about 2^-56.
    """
    _, offset_buffer, data_buffer = strings.buffers()
    width = np.dtype(np.int64 if str(strings.type).startswith("large") else np.int32)
    count = len(strings)
    if not count:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, width, count + 1, strings.offset * width.itemsize).astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    places = np.arange(len(data)) - np.repeat(starts, lengths)
    weighted = (data.astype(np.uint64) + np.uint64(1)) * _mixed(np.arange(int(lengths.max()), dtype=np.uint64))[places]
    sums = np.zeros(count, np.uint64)
    filled = np.flatnonzero(lengths)
    if filled.size:
        sums[filled] = np.add.reduceat(weighted, starts[filled])
    return sums


def repeated_hashes(shards: Sequence[Hashes]) -> Hashes:
    """Hashes that are there more than once, ascending; of each shard they must be sorted."""
    found = [np.empty(0, np.uint64)]
    edges = [np.uint64(number << 60) for number in range(1, RANGES)]
    cuts = [np.concatenate([[0], np.searchsorted(shard, edges), [len(shard)]]) for shard in shards]
    for number in range(RANGES):
        pieces = [shard[cut[number] : cut[number + 1]] for shard, cut in zip(shards, cuts, strict=True)]
        merged = np.concatenate([np.empty(0, np.uint64), *pieces])
        merged.sort()
        found.append(np.unique(merged[1:][merged[1:] == merged[:-1]]))
    return np.concatenate(found)


def find_repeated(
    shards: Sequence[Hashes], read_ids: Callable[[int], Iterator[tuple[int, Any]]]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(shard, rows) whose sample ids are there before, in this shard or an earlier one.

    Args:
        shards: the sorted hashes of each.
        read_ids: number of a shard -> (first row, Arrow array of ids), batch by batch.
    """
    candidates = repeated_hashes(shards)[:MAX_CANDIDATES]
    seen: set[str] = set()
    for number, hashes in enumerate(shards):
        if not candidates.size or not _is_among(candidates, hashes).any():
            continue
        rows: list[int] = []
        for first, ids in read_ids(number):
            for row in np.flatnonzero(_is_among(hash_strings(ids), candidates)).tolist():
                name = ids[row].as_py()
                if name in seen:
                    rows.append(first + row)
                seen.add(name)
        if rows:
            yield number, tuple(rows)


def _is_among(values: Hashes, ascending: Hashes) -> npt.NDArray[np.bool_]:
    """(values,) which are in an ascending array."""
    if not ascending.size:
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[places] == values


def _mixed(numbers: Hashes) -> Hashes:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): numbers without a pattern, the same everywhere."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
