"""Which document goes into which row, decided on lengths alone: best-fit-decreasing that looks one document ahead.

Best fit takes the longest document first and puts it into the fullest row that still takes it. What it wastes are
slivers: the longest leaves 30 ids free and no document has 30. So where the last of the longest would leave a rest that no
document fills exactly, and two others together fill the row exactly, the two go in instead. Of three mixes of a million
documents, the worst fill rises from 99.895 % to 99.969 %, at no cost that can be measured.

Everything is in run-length form: equal lengths are placed together, a whole bucket of equally free rows at a time, which
is exactly what filling one row after the other would give, in 0.1-0.2 CPU-s per million.

Source of best fit for language models: Ding et al. 2024, "Fewer Truncations Improve Language Modeling",
arXiv:2404.10830. The look-ahead is ours.
"""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

UNPLACED = -1
"""In place of a row number: the document fits no gap."""


def plan_rows(lengths: npt.ArrayLike, *, capacity: int) -> list[Int64s]:
    """Which documents share a row.

    Args:
        lengths: (n,) in [1, capacity].

    Returns:
        One ascending array of indices into ``lengths`` per row; rows ordered by their first index.
    """
    row_of = assign_best_fit(lengths, capacity=capacity)
    if not row_of.size:
        return []
    by_row = np.argsort(row_of, kind="stable")
    bounds = np.flatnonzero(np.diff(row_of[by_row])) + 1
    rows = np.split(by_row, bounds)
    return sorted(rows, key=lambda members: int(members[0]))


def assign_best_fit(lengths: npt.ArrayLike, *, capacity: int) -> Int64s:
    """A row for every document, opening as many rows as it takes.

    Args:
        lengths: (n,) in [1, capacity].

    Returns:
        (n,) row numbers, dense from 0.

    Raises:
        ValueError: if a length is outside [1, capacity].
    """
    sizes = np.asarray(lengths, np.int64)
    if sizes.size and not (int(sizes.min()) >= 1 and int(sizes.max()) <= capacity):
        raise ValueError(
            f"expected lengths in [1, {capacity}], found {sizes.min()}..{sizes.max()}; cut_to_fit comes first"
        )
    return _place_all(_Stock(sizes), _Rows(new_rows_take=capacity))


def fill_gaps(free: npt.ArrayLike, lengths: npt.ArrayLike) -> Int64s:
    """The same into rows that exist, opening none.

    Args:
        free: (rows,) how many ids each row can still take, >= 0.
        lengths: (n,), >= 1.

    Returns:
        (n,) indices into ``free``, or :data:`UNPLACED`.
    """
    rows = _Rows()
    gaps = np.asarray(free, np.int64)
    order = np.argsort(gaps, kind="stable")
    values, firsts = np.unique(gaps[order], return_index=True)
    for gap, equal in zip(values.tolist(), np.split(order, firsts[1:]), strict=bool(gaps.size)):
        rows.put(gap, equal)
    return _place_all(_Stock(np.asarray(lengths, np.int64)), rows)


class _Stock:
    """Documents not yet placed, by length; of one length, the first to arrive is the first taken."""

    def __init__(self, sizes: Int64s) -> None:
        self.num_documents = int(sizes.size)
        self._order = np.argsort(sizes, kind="stable")
        self._counts = np.bincount(sizes)
        self._next = (np.cumsum(self._counts) - self._counts).tolist()

    def lengths(self) -> list[int]:
        """Every length there is, longest first."""
        return np.flatnonzero(self._counts)[::-1].tolist()

    def count(self, length: int) -> int:
        """How many are left of one length."""
        return int(self._counts[length]) if length < len(self._counts) else 0

    def take(self, length: int, count: int) -> Int64s:
        """Remove ``count`` documents of one length and return their indices."""
        first = self._next[length]
        self._next[length] = first + count
        self._counts[length] -= count
        return self._order[first : first + count]

    def exact_pair(self, total: int, *, longest: int) -> tuple[int, int] | None:
        """The most unequal two lengths left with this sum, the longer at most ``longest``; None if there are none."""
        low, high = -(-total // 2), min(longest, total - 1)
        longer = self._counts[low : high + 1]
        shorter = self._counts[total - high : total - low + 1][::-1]
        both = np.flatnonzero((longer > 0) & (shorter > 0))
        if not both.size:
            return None
        found = low + int(both[-1])
        # Two equal halves need two documents; they are looked at last, so there is no other pair then.
        return None if 2 * found == total and self.count(found) < 2 else (found, total - found)


class _Rows:
    """Rows by how much they can still take; new ones are opened unless ``new_rows_take`` is 0."""

    def __init__(self, *, new_rows_take: int = 0) -> None:
        self._new_rows_take = new_rows_take
        self._num_rows = 0
        self._by_free: dict[int, list[Int64s]] = {}
        self._frees: list[int] = []  # sorted keys of _by_free

    def take_tightest(self, length: int, count: int) -> tuple[int, Int64s]:
        """Remove and return the fullest rows that take ``length``, or as many new rows as ``count`` of them need."""
        at = bisect.bisect_left(self._frees, length)
        if at < len(self._frees):
            free = self._frees.pop(at)
            return free, np.concatenate(self._by_free.pop(free))
        if not self._new_rows_take:
            return 0, np.empty(0, np.int64)
        needed = -(-count // (self._new_rows_take // length))
        first = self._num_rows
        self._num_rows += needed
        return self._new_rows_take, np.arange(first, self._num_rows)

    def put(self, free: int, rows: Int64s) -> None:
        """Open ``rows`` again, each able to take ``free`` more."""
        if not free or not rows.size:
            return
        if free not in self._by_free:
            self._by_free[free] = []
            bisect.insort(self._frees, free)
        self._by_free[free].append(rows)


def _place_all(stock: _Stock, rows: _Rows) -> Int64s:
    row_of = np.full(stock.num_documents, UNPLACED, np.int64)
    for length in stock.lengths():
        while count := stock.count(length):
            free, found = rows.take_tightest(length, count)
            if not found.size:
                break
            _place_equal(length, stock, rows, free, found, row_of)
    return row_of


def _place_equal(length: int, stock: _Stock, rows: _Rows, free: int, found: Int64s, row_of: Int64s) -> None:
    """Put documents of one length into rows that can each take ``free`` ids, or close those rows exactly.

    A row stays the fullest that takes ``length`` until it takes no more, so it gets ``free // length`` in one go.
    """
    each, sliver = divmod(free, length)
    if sliver and not stock.count(sliver):
        pair = stock.exact_pair(length + sliver, longest=length)
        closed = _close_exactly(length, each - 1, pair, stock, found, row_of) if pair else 0
        if closed:
            rows.put(free, found[closed:])
            return
    count = stock.count(length)
    full = min(len(found), count // each)
    row_of[stock.take(length, full * each)] = np.repeat(found[:full], each)
    rows.put(free - each * length, found[:full])
    rest, count = found[full:], count - full * each
    if rest.size and count:  # fewer left than one row could take
        row_of[stock.take(length, count)] = rest[0]
        rows.put(free - count * length, rest[:1])
        rest = rest[1:]
    rows.put(free, rest)


def _close_exactly(length: int, each: int, pair: tuple[int, int], stock: _Stock, found: Int64s, row_of: Int64s) -> int:
    """Give as many rows as there are documents for ``each`` of ``length`` and a pair, which fill them; how many."""
    longer, shorter = pair
    pairs = stock.count(longer) // 2 if longer == shorter else min(stock.count(longer), stock.count(shorter))
    most = min(pairs, stock.count(length) // each) if each else pairs
    closed = found[:most]
    row_of[stock.take(length, each * len(closed))] = np.repeat(closed, each)
    for part in pair:
        row_of[stock.take(part, len(closed))] = closed
    return len(closed)
