"""Masks and positions against an oracle that looks at one id at a time."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.mixed_rows import MixedRows
from train.collate import IGNORED, allocate, document_positions, fill, mark_targets, micro_batches
from train.plan import Plan


@st.composite
def marked_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Document starts, disjoint loss spans, length."""
    length = draw(st.integers(2, 60))
    starts = sorted({0} | set(draw(st.lists(st.integers(1, length - 1), max_size=8))))
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=12)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    return np.array(starts, np.int32), np.array(spans, np.int32).reshape(-1, 2), length


@given(marked_rows())
def test_a_target_is_in_a_span_and_opens_no_document(marked: tuple[np.ndarray, np.ndarray, int]):
    starts, spans, length = marked
    found = np.ones(length, np.bool_)
    mark_targets(found, spans, starts)
    expected = [any(a <= t < b for a, b in spans.tolist()) and t not in starts.tolist() for t in range(length)]
    assert found.tolist() == expected


@given(marked_rows())
def test_positions_count_from_the_start_of_the_own_document(marked: tuple[np.ndarray, np.ndarray, int]):
    starts, _, length = marked
    found = document_positions(starts, length)
    assert found.tolist() == [t - max(start for start in starts.tolist() if start <= t) for t in range(length)]


def test_a_batch_holds_the_rows_asked_for_and_its_labels_hide_what_is_no_target(plan: Plan):
    batch = allocate(3, plan.sequence_length, plan.vocabulary.dtype, "document")
    mixed = MixedRows(plan.mixture, plan.datasets)
    fill(batch, mixed, mixed.find(np.array([2, 0, 2]), np.array([5, 1, 0])))
    for place, (index, row) in enumerate(((2, 5), (0, 1), (2, 0))):
        dataset = plan.datasets[index]
        assert (batch.token_ids[place] == dataset.gather([row])[0]).all()
        spans, starts = dataset.loss_spans(row).tolist(), dataset.document_starts(row).tolist()
        inside = sum(stop - start for start, stop in spans)
        assert 0 < batch.is_target[place].sum() == inside - sum(any(a <= s < b for a, b in spans) for s in starts)
    parts = list(micro_batches(batch, 2, torch.device("cpu")))
    assert [len(part.input_ids) for part in parts] == [2, 1]
    labels, ids = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("labels", "input_ids"))
    assert (ids == batch.token_ids).all()
    assert (labels[batch.is_target] == batch.token_ids[batch.is_target]).all()
    assert (labels[~batch.is_target] == IGNORED).all()
    assert torch.cat([part.datasets for part in parts]).tolist() == [2, 0, 2]


def test_padding_is_never_a_target(plan: Plan):
    batch = allocate(4, plan.sequence_length, plan.vocabulary.dtype, "row")
    mixed = MixedRows(plan.mixture, plan.datasets)
    fill(batch, mixed, mixed.find(np.zeros(4, np.int64), np.arange(4)))
    used = plan.datasets[0].num_tokens(np.arange(4))
    assert (used < plan.sequence_length).any(), "the fixture should have padded rows"
    for place, count in enumerate(used.tolist()):
        assert not batch.is_target[place, count:].any()
    assert batch.position_ids is None
