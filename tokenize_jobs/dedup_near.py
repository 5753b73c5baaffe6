"""Which of many hashes are near each other: answers from sorted arrays, in memory linear in their number.

Both kinds of near copies are found in the same way. Keys are made such that near hashes have equal ones; the hashes are
sorted by each key in turn, and those with equal keys are compared.

* Hamming distance d over 64 bits (Manku et al. 2007, "Detecting near-duplicates for web crawling"): of b blocks of bits,
  d differing bits leave at least b - d untouched, so the choice of b - d blocks is the key, every choice in turn. More
  blocks mean more choices and longer keys; b is taken so that sorting and comparing together cost least.
* MinHash: the bands that datasketch's ``MinHashLSH`` would use for the threshold, when it must not miss any. Its own
  tables are Python dictionaries, which took 0.5 ms and 3 KiB a text where the sorted arrays take 6 us and the MinHash
  itself. These give the same candidates, and every candidate is compared by its whole MinHash.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from datasketch import MinHashLSH

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Pairs = tuple[Numbers, Numbers]
Near = Callable[[Numbers, Numbers], npt.NDArray[np.bool_]]

MOST_NEIGHBOURS = 4096
"""With how many of those that have an equal key a hash is compared, at most: a million pictures that share most of their
bits would else be compared each with each. They are sorted, so that those next to each other are compared."""
LSH_WEIGHTS = (0.02, 0.98)
"""Of candidates too many and of pairs missed: the former only cost time, for every candidate is compared. At a threshold
of 0.8, 98 of 100 pairs that reach it just so are found, and all that are more alike."""
_MOST_BLOCKS = 12
_COMPARED_AT_ONCE = 1 << 14


def hamming_pairs(hashes: Hashes, near: Near, *, max_distance: int, bits: int = 64) -> Iterator[Pairs]:
    """Pairs of hashes at most ``max_distance`` bits apart: enough of them to connect all that such pairs connect.

    Args:
        hashes: (n,) the low ``bits`` count; sorted ones are compared with their likes first.
        near: of two arrays of indices, which pairs are near in other ways as well.
    """

    def is_near(left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
        close = np.bitwise_count(hashes[left] ^ hashes[right]) <= max_distance
        close[close] = near(left[close], right[close])
        return close

    if len(hashes) < 2:
        return
    known = _Known(len(hashes))
    for mask in block_masks(len(hashes), max_distance=max_distance, bits=bits):
        yield from _near_with_equal_keys(hashes & np.uint64(mask), is_near, known)


def block_masks(count: int, *, max_distance: int, bits: int = 64) -> list[int]:
    """The bits of each key: hashes at most ``max_distance`` apart agree in all bits of at least one."""
    costs: dict[int, float] = {}
    for blocks in range(max_distance + 1, min(_MOST_BLOCKS, bits) + 1):
        key_bits = bits * (blocks - max_distance) // blocks
        # Sorting a hash costs about as much as comparing it with two dozen others.
        a_table = count * (24.0 + count / 2.0 ** (key_bits + 1))
        costs[blocks] = math.comb(blocks, max_distance) * a_table
    blocks = min(costs, key=lambda number: costs[number])
    edges = [bits * number // blocks for number in range(blocks + 1)]
    masks = [(1 << stop) - (1 << start) for start, stop in itertools.pairwise(edges)]
    return [sum(chosen) for chosen in itertools.combinations(masks, blocks - max_distance)]


def minhash_pairs(minhashes: npt.NDArray[np.uint32], rows: Numbers, *, threshold: float) -> Iterator[Pairs]:
    """Pairs of MinHashes that agree in at least ``threshold`` of their places and in one band: enough to connect them.

    Args:
        minhashes: (n, permutations); may be mapped from a file.
        rows: which of them are compared; the pairs are of these numbers.
    """
    if len(rows) < 2:
        return
    bands = MinHashLSH(threshold=threshold, num_perm=minhashes.shape[1], weights=LSH_WEIGHTS)

    def is_near(left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
        starts = range(0, len(left), _COMPARED_AT_ONCE)
        pieces = [slice(start, start + _COMPARED_AT_ONCE) for start in starts]
        found = [similarity(minhashes, rows[left[piece]], rows[right[piece]]) for piece in pieces]
        return np.concatenate(found) >= threshold

    known = _Known(len(rows))
    for band in range(bands.b):
        keys = _band_keys(minhashes, rows, band * bands.r, bands.r)
        for left, right in _near_with_equal_keys(keys, is_near, known):
            yield rows[left], rows[right]


def similarity(minhashes: npt.NDArray[np.uint32], left: Numbers, right: Numbers) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarities, (pairs,)."""
    return (minhashes[left] == minhashes[right]).mean(axis=1)


def components(left: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    """What is connected by pairs.

    Returns:
        (n,) everything that is in a pair, sorted, and (n,) the smallest number of what it is connected with.
    """
    # Only here: it takes a second to import.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    if not len(nodes):
        return nodes, nodes
    edges = (np.ones(len(left), np.int8), (places[: len(left)], places[len(left) :]))
    _, labels = connected_components(coo_array(edges, shape=(len(nodes), len(nodes))), directed=False)
    # Nodes are sorted, so the first of a label is its smallest.
    _, first = np.unique(labels, return_index=True)
    return nodes, nodes[first[labels]]


def _band_keys(minhashes: npt.NDArray[np.uint32], rows: Numbers, start: int, width: int) -> Hashes:
    """One number a band; two bands that share one by accident are told apart by the comparison."""
    keys = np.full(len(rows), 0xCBF29CE484222325, np.uint64)
    for column in range(start, start + width):
        keys = (keys ^ minhashes[rows, column]) * np.uint64(0x100000001B3)
        keys ^= keys >> np.uint64(29)
    return keys


class _Known:
    """What is connected already, so that a thousand copies are not compared each with each."""

    def __init__(self, count: int) -> None:
        self.roots: Numbers = np.arange(count, dtype=np.int64)
        self._waiting: list[Pairs] = []

    def add(self, left: Numbers, right: Numbers) -> None:
        """Note pairs; they count from the next :meth:`update` on."""
        self._waiting.append((left, right))

    def update(self) -> None:
        """Connect what was noted."""
        if self._waiting:
            left, right = concatenate(self._waiting)
            nodes, first = components(self.roots[left], self.roots[right])
            places = np.minimum(np.searchsorted(nodes, self.roots), len(nodes) - 1)
            self.roots = np.where(nodes[places] == self.roots, first[places], self.roots)
            self._waiting = []


def _near_with_equal_keys(keys: Hashes, is_near: Near, known: _Known) -> Iterator[Pairs]:
    """Compare everything with the 1st, 2nd, ... one after it that has an equal key, all at once."""
    order = np.argsort(keys, kind="stable").astype(np.int64)
    ordered = keys[order]
    left = np.flatnonzero(ordered[:-1] == ordered[1:])
    for step in range(1, MOST_NEIGHBOURS + 1):
        if not len(left):
            break
        first, second = order[left], order[left + step]
        apart = known.roots[first] != known.roots[second]
        first, second = first[apart], second[apart]
        close = is_near(first, second) if len(first) else np.empty(0, bool)
        if close.any():
            known.add(first[close], second[close])
            yield first[close], second[close]
        if step.bit_count() == 1:
            known.update()
        left = left[left + step + 1 < len(ordered)]
        left = left[ordered[left] == ordered[left + step + 1]]
    known.update()


def concatenate(pairs: Sequence[Pairs]) -> Pairs:
    """All pairs as one."""
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([left for left, _ in pairs]), np.concatenate([right for _, right in pairs])
