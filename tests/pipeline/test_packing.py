"""Packing: every id exactly once, nothing cut that fits, and the same rows however the documents arrive."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import Document
from pipeline.packing import Piece, assign_best_fit, cut_to_fit, merge_touching, pack_best_fit, plan_rows
from shards.errors import SampleError
from shards.packed import PackedRow

LENGTH = 24
PAD = 0


@st.composite
def documents(draw: st.DrawFn, max_length: int = LENGTH) -> list[Document]:
    """Documents whose ids are all different, so that an id says where it came from."""
    lengths = draw(st.lists(st.integers(1, max_length), min_size=1, max_size=40))
    found = []
    next_id = 1
    for number, length in enumerate(lengths):
        edges = draw(st.lists(st.integers(0, length), max_size=4, unique=True).map(sorted))
        spans = tuple(zip(edges[::2], edges[1::2], strict=False))
        borders = tuple(range(1, length)) if length > LENGTH else ()
        ids = np.arange(next_id, next_id + length)
        found.append(Document(f"s{number}", 0, "text_to_image", ids, spans, borders))
        next_id += length
    return found


def pack(found: list[Document], *, buffer_pieces: int = 1000) -> list[PackedRow]:
    pieces = (piece for document in found for piece in cut_to_fit(document, sequence_length=LENGTH))
    return list(
        pack_best_fit(
            pieces,
            sequence_length=LENGTH,
            pad_id=PAD,
            dtype=np.dtype(np.uint16),
            buffer_pieces=buffer_pieces,
        )
    )


@settings(deadline=None)
@given(documents(max_length=3 * LENGTH), st.integers(1, 50))
def test_every_id_is_packed_exactly_once(found: list[Document], buffer_pieces: int) -> None:
    rows = pack(found, buffer_pieces=buffer_pieces)
    packed = np.sort(np.concatenate([row.token_ids[: row.num_tokens] for row in rows]))
    assert np.array_equal(packed, np.concatenate([document.token_ids for document in found]))
    assert all((row.token_ids[row.num_tokens :] == PAD).all() for row in rows)


@settings(deadline=None)
@given(documents(max_length=3 * LENGTH), st.integers(1, 50))
def test_loss_spans_move_with_their_ids(found: list[Document], buffer_pieces: int) -> None:
    trained = {int(i) for d in found for begin, end in d.loss_spans for i in d.token_ids[begin:end]}
    rows = pack(found, buffer_pieces=buffer_pieces)
    moved = [int(i) for row in rows for begin, end in row.loss_spans for i in row.token_ids[begin:end]]
    assert Counter(moved) == Counter(trained)
    edges = [[edge for span in row.loss_spans for edge in span] for row in rows]
    assert all(row_edges == sorted(set(row_edges)) for row_edges in edges)


@settings(deadline=None)
@given(documents())
def test_no_document_that_fits_is_cut(found: list[Document]) -> None:
    by_id = {document.sample_id: document for document in found}
    for row in pack(found):
        assert tuple(placement.start for placement in row.placements) == row.document_starts
        for placement in row.placements:
            ids = row.token_ids[placement.start : placement.stop]
            assert np.array_equal(ids, by_id[placement.sample_id].token_ids)


@settings(deadline=None)
@given(documents(), st.integers(1, 10))
def test_rows_do_not_depend_on_how_documents_arrive(found: list[Document], buffer_pieces: int) -> None:
    first, second = pack(found, buffer_pieces=buffer_pieces), pack(iter(found), buffer_pieces=buffer_pieces)
    assert [row.token_ids.tolist() for row in first] == [row.token_ids.tolist() for row in second]
    buffers = [found[start : start + buffer_pieces] for start in range(0, len(found), buffer_pieces)]
    apart = [row.token_ids.tolist() for buffer in buffers for row in pack(buffer)]
    assert [row.token_ids.tolist() for row in first] == apart


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=300), st.integers(60, 100))
def test_placing_equal_lengths_at_once_is_placing_them_one_by_one(lengths: list[int], capacity: int) -> None:
    """The run-length form opens exactly as many rows, filled to the same levels, as textbook best-fit-decreasing."""
    row_of = assign_best_fit(lengths, capacity=capacity)
    filled = np.bincount(row_of, weights=np.array(lengths, float)).astype(int) if lengths else np.empty(0, int)
    assert sorted(filled.tolist()) == sorted(_textbook_best_fit(lengths, capacity))
    assert set(row_of.tolist()) == set(range(len(filled)))


def _textbook_best_fit(lengths: list[int], capacity: int) -> list[int]:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(free, length)
        left = (free.pop(at) if at < len(free) else capacity) - length
        bisect.insort(free, left)
    return [capacity - left for left in free]


def test_a_row_a_human_can_follow() -> None:
    """9 + 1 and 6 + 4 fill two rows of ten; 5 stays alone."""
    assert [members.tolist() for members in plan_rows([6, 5, 9, 4, 1], capacity=10)] == [[0, 3], [1], [2, 4]]
    assert plan_rows([], capacity=10) == []


def test_lengths_that_cannot_be_packed_are_refused() -> None:
    for lengths in ([0], [11], [3, -1]):
        with pytest.raises(ValueError, match=r"expected lengths in \[1, 10\]"):
            assign_best_fit(lengths, capacity=10)


def test_mixed_documents_fill_rows_of_4500() -> None:
    """The balanced mix of reference/loader-peers.md: captions, speech, music, long documents."""
    rng = np.random.default_rng(0)
    kinds = [(60, 120), (170, 1078), (1015, 1060), (300, 4000)]
    lengths = np.concatenate([rng.integers(low, high, 2500) for low, high in kinds])
    assert lengths.sum() / (4500 * (assign_best_fit(lengths, capacity=4500).max() + 1)) > 0.998


def test_a_long_document_is_cut_at_the_last_border_that_fits() -> None:
    document = Document("s", 0, "interleaved", np.arange(50), ((0, 50),), borders=(5, 20, 23, 30, 44))
    pieces = cut_to_fit(document, sequence_length=24)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 23), (23, 44), (44, 50)]


def test_a_document_that_fits_is_never_cut_whatever_its_borders() -> None:
    document = Document("s", 0, "interleaved", np.arange(24), (), borders=(5, 20))
    assert cut_to_fit(document, sequence_length=24) == [Piece(document, 0, 24)]


@pytest.mark.parametrize(
    ("document", "policy", "reason"),
    [
        (Document("s", 0, "x", np.arange(50), (), borders=(5, 30)), "split", "segment_longer_than_row"),
        (Document("s", 0, "x", np.arange(50), ()), "split", "segment_longer_than_row"),
        (Document("s", 0, "x", np.arange(50), (), borders=(20, 40)), "reject", "longer_than_row"),
        (Document("s", 0, "x", np.arange(0), ()), "split", "document_empty"),
    ],
)
def test_what_cannot_be_packed_is_rejected_by_name(document: Document, policy: str, reason: str) -> None:
    with pytest.raises(SampleError) as error:
        cut_to_fit(document, sequence_length=24, long_documents=policy)
    assert error.value.reason == reason


def test_spans_that_touch_become_one() -> None:
    assert merge_touching([(0, 3), (3, 5), (6, 7), (7, 9)]) == ((0, 5), (6, 9))
