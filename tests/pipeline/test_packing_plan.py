"""Which documents share a row, on lengths alone: best fit that looks one document ahead."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing_plan import UNPLACED, assign_best_fit, fill_gaps, plan_rows


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=300), st.integers(60, 150))
def test_placing_equal_lengths_at_once_is_placing_them_one_by_one(lengths: list[int], capacity: int) -> None:
    """The run-length form opens exactly as many rows, filled to the same levels, as one row after the other."""
    row_of = assign_best_fit(lengths, capacity=capacity)
    filled = np.bincount(row_of, weights=np.array(lengths, float)).astype(int) if lengths else np.empty(0, int)
    free, _ = _one_by_one(lengths, [], capacity)
    assert sorted((capacity - filled).tolist()) == sorted(free)
    assert set(row_of.tolist()) == set(range(len(filled)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 80), max_size=40), st.lists(st.integers(1, 60), max_size=200))
def test_filling_gaps_is_filling_them_one_by_one(gaps: list[int], lengths: list[int]) -> None:
    """Nothing overflows, and what finds no place is longer than every gap that is left."""
    row_of = fill_gaps(gaps, lengths)
    free = np.array(gaps, int)
    placed = row_of != UNPLACED
    np.subtract.at(free, row_of[placed], np.array(lengths, int)[placed])
    expected, unplaced = _one_by_one(lengths, gaps, 0)
    assert sorted(free.tolist()) == sorted(expected)
    assert sorted(np.array(lengths, int)[~placed].tolist()) == sorted(unplaced)
    assert all(length > max(free, default=0) for length in unplaced)


def _one_by_one(lengths: list[int], gaps: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """The rule, one row at a time; what rows have free in the end, and the lengths that fitted nowhere."""
    stock, free, unplaced = Counter(lengths), list(gaps), list[int]()
    while stock := +stock:
        longest = max(stock)
        fitting = [gap for gap in free if gap >= longest]
        if not fitting and not capacity:
            unplaced += [longest] * stock.pop(longest)
            continue
        gap = min(fitting, default=capacity)
        if fitting:
            free.remove(gap)
        parts = [longest]
        each, sliver = divmod(gap, longest)
        if sliver and not stock[sliver] and stock[longest] >= each - 1:
            total = longest + sliver
            # The most unequal pair comes first.
            for shorter in range(sliver + 1, total // 2 + 1):
                pair = Counter((total - shorter, shorter))
                if all(stock[size] >= count for size, count in pair.items()):
                    parts = [longest] * (each - 1) + [total - shorter, shorter]
                    break
        stock.subtract(parts)
        free.append(gap - sum(parts))
    return free, unplaced


def test_a_row_a_human_can_follow() -> None:
    """9 + 1 and 6 + 4 fill two rows of ten; 5 stays alone."""
    assert [members.tolist() for members in plan_rows([6, 5, 9, 4, 1], capacity=10)] == [[0, 3], [1], [2, 4]]
    assert plan_rows([], capacity=10) == []


def test_two_that_fit_exactly_go_before_the_longest_that_leaves_a_sliver() -> None:
    """Of 5, 4 and 3 the longest would leave 2 of a gap of 7 empty for good; 4 and 3 leave nothing."""
    assert fill_gaps([7, 5], [5, 4, 3]).tolist() == [1, 0, 0]
    assert fill_gaps([7], [5, 4, 3]).tolist() == [UNPLACED, 0, 0]
    assert fill_gaps([7], [5, 4]).tolist() == [0, UNPLACED]
    assert fill_gaps([], [5]).tolist() == [UNPLACED]
    assert fill_gaps([3, 0], []).tolist() == []


def test_lengths_that_cannot_be_packed_are_refused() -> None:
    for lengths in ([0], [11], [3, -1]):
        with pytest.raises(ValueError, match=r"expected lengths in \[1, 10\]"):
            assign_best_fit(lengths, capacity=10)


@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.05, 0.1), (0.25, 0.25, 0.25, 0.25), (0.1, 0.1, 0.1, 0.7)])
def test_mixed_documents_fill_rows_of_4500(shares: tuple[float, ...]) -> None:
    """The mixes that packers were compared on, 20,000 documents each: captions, speech, music, long documents."""
    rng = np.random.default_rng(0)
    kinds = [(60, 120), (170, 1078), (1015, 1060), (300, 4000)]
    lengths = np.concatenate(
        [rng.integers(low, high, int(20_000 * share)) for (low, high), share in zip(kinds, shares, strict=True)]
    )
    assert lengths.sum() / (4500 * (assign_best_fit(lengths, capacity=4500).max() + 1)) > 0.999
