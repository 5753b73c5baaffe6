"""Codebooks of whole numbers: k-means, nearest entry, residual levels, and steady codes.

Vectors and entries are whole numbers small enough that float32 holds every sum of products exactly (checked), so the
order of summation cannot matter: fitting and looking up give the same codes with any number of threads, in any batch
and with any BLAS. Ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

EXACT = 2.0**24
"""Whole numbers up to here are exact in float32."""

_PIECE = 2048


def fit_kmeans(vectors: Floats, size: int, *, seed: int, iterations: int = 12) -> Floats:
    """(size, d) whole-number centroids of (n, d) whole-number vectors; rarer vectors than entries repeat entries.

    Starts from vectors drawn without replacement. An entry that nothing is nearest to moves, at each iteration, to one
    of the vectors that are worst served.
    """
    if size == 0:
        return np.zeros((0, vectors.shape[1]), np.float32)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(vectors))
    entries = vectors[order[np.arange(size) % len(vectors)]].copy()
    for _ in range(iterations):
        owner, distance = nearest_with_distance(vectors, entries)
        updated, count = centroids(vectors, owner, size)
        idle = np.flatnonzero(count == 0)
        worst = np.argsort(-distance, kind="stable")[: len(idle)]
        updated[idle[: len(worst)]] = vectors[worst]
        if np.array_equal(updated, entries):
            break
        entries = updated
    return entries


def fit_cover(vectors: Floats, max_entries: int, *, radius: float) -> Floats | None:
    """(entries, d) of the vectors themselves, such that each vector has one within ``radius`` (RMS over d).

    In order of first appearance; None if it takes more than ``max_entries``.
    """
    limit = radius * radius * vectors.shape[1]
    entries = np.empty((max_entries, vectors.shape[1]), np.float32)
    count = 0
    for start in range(0, len(vectors), _PIECE):
        block = vectors[start : start + _PIECE]
        if count:
            block = block[squared_distances(block, entries[:count]).min(axis=1) > limit]
        while len(block):
            if count == max_entries:
                return None
            entries[count] = block[0]
            block = block[squared_distances(block, entries[count : count + 1])[:, 0] > limit]
            count += 1
    return entries[:count]


def centroids(vectors: Floats, owner: Indices, size: int) -> tuple[Floats, Indices]:
    """Means of the vectors of each owner, rounded to whole numbers, and how many there are; nobody's mean is 0.

    Args:
        vectors: (n, d) of any values, e.g. what a code shall decode to.
        owner: (n,) in [0, size).
    """
    order = np.argsort(owner, kind="stable")
    count = np.bincount(owner, minlength=size)
    present = np.flatnonzero(count)
    total = np.zeros((size, vectors.shape[1]), np.float64)
    starts = (np.cumsum(count) - count)[present]
    total[present] = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    return np.rint(total / np.maximum(count, 1)[:, None]).astype(np.float32), count


def nearest(vectors: Floats, entries: Floats) -> Indices:
    """(n,) index of the closest entry."""
    return nearest_with_distance(vectors, entries)[0]


def nearest_with_distance(vectors: Floats, entries: Floats) -> tuple[Indices, Floats]:
    """(n,) index of the closest entry and (n,) squared distance to it."""
    _check_exact(vectors, entries)
    owner = np.empty(len(vectors), np.int64)
    closeness = np.empty(len(vectors), np.float32)
    twice, entry_norms = 2 * entries.T, _norms(entries)
    for start in range(0, len(vectors), _PIECE):
        piece = slice(start, min(start + _PIECE, len(vectors)))
        # The vector's own norm is the same for all entries and left out.
        table = vectors[piece] @ twice
        table -= entry_norms
        owner[piece] = table.argmax(axis=1)
        closeness[piece] = np.take_along_axis(table, owner[piece][:, None], axis=1)[:, 0]
    return owner, _norms(vectors) - closeness


def squared_distances(vectors: Floats, entries: Floats) -> Floats:
    """(n, size), exact.

    Raises:
        ValueError: if the numbers are too large to be exact.
    """
    _check_exact(vectors, entries)
    table = vectors @ entries.T
    table *= -2
    table += _norms(vectors)[:, None]
    table += _norms(entries)
    return table


def _norms(vectors: Floats) -> Floats:
    return (vectors * vectors).sum(axis=1)


def _check_exact(vectors: Floats, entries: Floats) -> None:
    farthest = (float(_norms(vectors).max(initial=0)) ** 0.5 + float(_norms(entries).max(initial=0)) ** 0.5) ** 2
    if farthest > EXACT:
        raise ValueError(f"expected vectors whose squared distances stay below {EXACT:.0f}, found up to {farthest:.0f}")


@dataclass(frozen=True, slots=True)
class Thrift:
    """What codes cost besides their distance, in squared distance: how steady and how sparse a level is.

    Attributes:
        switch: each change of code from one frame to the next.
        use: each frame with another code than 0; for levels where entry 0 is "nothing".
    """

    switch: int = 0
    use: int = 0


NEAREST = Thrift()
"""No thrift: every frame takes its nearest entry."""


def steady(vectors: Floats, entries: Floats, thrift: Thrift) -> Indices:
    """(n,) codes of a sequence with the least sum of squared distances and costs.

    A sound that goes on keeps its code, because a change must be worth its cost. Exact dynamic programming over the
    whole sequence: a Viterbi search in which every change costs the same, so that a frame takes O(entries) steps.
    """
    if thrift == NEAREST:
        return nearest(vectors, entries)
    # Where entry 0 is never further off than the price of the others, nothing else can pay.
    if thrift.use and squared_distances(vectors, entries[:1]).max(initial=0) <= thrift.use:
        return np.zeros(len(vectors), np.int64)
    stays = np.zeros((len(vectors), len(entries)), bool)
    best_before = np.zeros(len(vectors), np.int64)
    # Relative to the best code a cost is at most one switch, so these whole numbers stay small and exact.
    cost = np.zeros(len(entries), np.float32)
    switch = np.float32(thrift.switch)
    for start in range(0, len(vectors), _PIECE):
        table = squared_distances(vectors[start : start + _PIECE], entries)
        table[:, 1:] += thrift.use
        for frame, distance in enumerate(table, start=start):
            best_before[frame] = cost.argmin()
            np.less_equal(cost, switch, out=stays[frame])
            np.minimum(cost, switch, out=cost)
            cost += distance
            cost -= cost.min()
    codes = np.empty(len(vectors), np.int64)
    code = int(cost.argmin())
    for frame in range(len(vectors) - 1, -1, -1):
        codes[frame] = code
        code = code if stays[frame, code] else int(best_before[frame])
    return codes


def live(entries: Floats) -> Floats:
    """The codebook without the repeats of its last entry that fill it up; they are nobody's nearest."""
    different = np.flatnonzero((entries != entries[-1]).any(axis=1))
    return entries[: int(different[-1]) + 2] if len(different) else entries[:1]


def encode_residual(
    vectors: Floats, codebooks: Sequence[Floats], *, thrift: Sequence[Thrift]
) -> npt.NDArray[np.uint16]:
    """(n, levels) codes, each level of what the levels before it left over; see :func:`steady`."""
    rest = vectors
    codes = np.empty((len(vectors), len(codebooks)), np.uint16)
    for level, (entries, costs) in enumerate(zip(codebooks, thrift, strict=True)):
        codes[:, level] = steady(rest, entries, costs)
        rest = rest - entries[codes[:, level]]
    return codes


def decode_residual(codes: npt.NDArray[np.uint16], codebooks: Sequence[Floats]) -> Floats:
    """(n, d) sums of the entries; fewer levels than codebooks give the coarser sum."""
    total = codebooks[0][codes[:, 0]].copy()
    for level in range(1, codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total
