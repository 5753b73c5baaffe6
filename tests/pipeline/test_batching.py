"""Batches: every item once, never more than the device holds, results in the order of the items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokenizers.batching import plan_batches, run_batches

LENGTHS = st.lists(st.integers(1, 1000), max_size=40)


@given(LENGTHS, st.integers(1, 10), st.integers(1, 3000), st.floats(0, 1))
def test_every_item_is_in_one_batch_and_no_batch_breaks_a_limit(
    lengths: list[int], max_items: int, max_total: int, max_waste: float
):
    """A single item may be larger than the budget: it is a batch of its own."""
    batches = plan_batches(lengths, max_items=max_items, max_total=max_total, max_waste=max_waste)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * lengths[batch[0]]
        assert len(batch) <= max_items
        assert len(batch) == 1 or padded <= max_total
        assert padded - sum(lengths[index] for index in batch) <= max_waste * padded + 1e-6


@given(LENGTHS)
def test_the_longest_comes_first_within_a_batch_and_among_batches(lengths: list[int]):
    """Memory that does not suffice shows at once, and a part of a batch is a slice of it."""
    order = [lengths[index] for batch in plan_batches(lengths, max_items=4, max_total=3000) for index in batch]
    assert order == sorted(lengths, reverse=True)


def test_a_batch_is_closed_before_it_is_mostly_padding():
    """By hand: 100 and 90 go together, 10 would waste 35 % of the room."""
    assert plan_batches([10, 100, 90], max_items=9, max_total=900) == [[1, 2], [0]]
    assert plan_batches([10, 100, 90], max_items=9, max_total=900, max_waste=1.0) == [[1, 2, 0]]
    assert plan_batches([10, 100, 90], max_items=9, max_total=250, max_waste=1.0) == [[1, 2], [0]]


@given(LENGTHS, st.integers(1, 5))
def test_results_come_back_in_the_order_of_the_items(lengths: list[int], max_items: int):
    """Whatever the order of the batches was."""

    def collate(indices: Sequence[int]) -> torch.Tensor:
        return torch.tensor([lengths[index] for index in indices])

    def forward(tensor: torch.Tensor, indices: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip(indices, tensor.tolist(), strict=True))

    batches = plan_batches(lengths, max_items=max_items, max_total=2000)
    results = run_batches(batches, collate, forward, device=torch.device("cpu"))
    assert results == list(enumerate(lengths))
