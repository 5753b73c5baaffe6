"""Who reads which rows of a global batch, so that every rank sees the mixture and not a part of it.

The schedule of a mixture is periodic, and so are the rows of a batch: ranks that took every k-th of them, or a stretch,
would see some datasets only. Here every rank gets its number of rows of every batch and, of each dataset, one of every W
rows in the order of the schedule (W ranks). Both at once is an equitable colouring of the edges of a bipartite graph (de
Werra 1971): rows are edges between a step and a dataset, ranks are colours. Steps and datasets are cut into groups of W
rows, and a graph whose groups have at most W edges has a colouring with W colours (König 1916), which is found edge by edge
with alternating paths.

What is coloured at once is a cycle, the shortest stretch of steps after which batches look the same again. After it every
rank has had exactly the shares, where that is possible in whole rows; else ranks change places from cycle to cycle, and it
is so after W of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_GOLDEN_RATIO = 0.618034
LONGEST_CYCLE = 1 << 16
"""Rows that are coloured at once, for colouring takes microseconds each. Longer cycles, of shares with many decimals, are
cut."""


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """The rows of the batches of a cycle, or of a piece of one, by rank.

    Attributes:
        columns: (steps, ranks, rows of a rank) int32, places in the batch, in ascending order.
        is_exact: whether every rank has equally many rows of each dataset.
    """

    columns: npt.NDArray[np.int32]
    is_exact: bool


def deal(dataset_of_row: npt.NDArray[np.int64], num_ranks: int) -> Deal:
    """Deal batches.

    Args:
        dataset_of_row: (steps, rows of a batch); the batch divides over the ranks.
    """
    flat = dataset_of_row.reshape(-1)
    counts = np.bincount(flat)
    groups = -(-counts // num_ranks)
    order = np.argsort(flat, kind="stable")
    nth = np.empty(len(flat), np.int64)
    nth[order] = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    right = (np.cumsum(groups) - groups)[flat] + nth // num_ranks
    colours = colour_edges(np.arange(len(flat)) // num_ranks, right, num_ranks)
    # Each colour occurs equally often in a step.
    places = np.argsort(colours.reshape(dataset_of_row.shape), axis=1, kind="stable")
    columns = places.reshape(len(dataset_of_row), num_ranks, -1).astype(np.int32)
    return Deal(columns, is_exact=not (counts % num_ranks).any())


def seats(rank: int, cycles: npt.NDArray[np.int64], num_ranks: int) -> npt.NDArray[np.int64]:
    """Whose rows a rank reads in each cycle: every one's once in ``num_ranks`` cycles, neighbours far apart."""
    stride = round(num_ranks * _GOLDEN_RATIO)
    while math.gcd(stride, num_ranks) > 1:
        stride += 1
    return (rank + cycles * stride) % num_ranks


def colour_edges(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], num_colours: int) -> npt.NDArray[np.int64]:
    """Colours of the edges of a bipartite multigraph, no two alike at a vertex; the same ones every time.

    Args:
        left, right: (edges,) the vertices of each edge, numbered on their own on either side; none has more edges than
            there are colours.
    """
    everything = (1 << num_colours) - 1
    free: tuple[list[int], list[int]] = ([everything] * (int(left.max()) + 1), [everything] * (int(right.max()) + 1))
    at: tuple[list[dict[int, int]], list[dict[int, int]]] = ([{} for _ in free[0]], [{} for _ in free[1]])
    ends = (left.tolist(), right.tolist())
    found = [0] * len(left)
    for edge, (one, other) in enumerate(zip(*ends, strict=True)):
        common = free[0][one] & free[1][other]
        if common:
            colour = _lowest(common)
        else:
            colour, instead = _lowest(free[0][one]), _lowest(free[1][other])
            _swap(other, colour, instead, ends, found, free, at)
        found[edge] = colour
        for side, vertex in enumerate((one, other)):
            free[side][vertex] ^= 1 << colour
            at[side][vertex][colour] = edge
    return np.array(found, np.int64)


def _swap(
    vertex: int,
    colour: int,
    instead: int,
    ends: tuple[list[int], list[int]],
    found: list[int],
    free: tuple[list[int], list[int]],
    at: tuple[list[dict[int, int]], list[dict[int, int]]],
) -> None:
    """Make ``colour`` free at a right vertex: swap it with ``instead`` along the path of the two that begins there.

    The path never reaches a left vertex at which ``colour`` is free, because it comes to that side by ``colour`` only.
    """
    path: list[int] = []
    side, wanted, here = 1, colour, vertex
    while wanted in at[side][here]:
        edge = at[side][here][wanted]
        path.append(edge)
        side, wanted = 1 - side, instead if wanted == colour else colour
        here = ends[side][edge]
    for edge in path:
        for end, vertices in enumerate(ends):
            del at[end][vertices[edge]][found[edge]]
            free[end][vertices[edge]] ^= 1 << found[edge]
    for edge in path:
        found[edge] = instead if found[edge] == colour else colour
        for end, vertices in enumerate(ends):
            at[end][vertices[edge]][found[edge]] = edge
            free[end][vertices[edge]] ^= 1 << found[edge]


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
