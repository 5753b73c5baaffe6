"""Packing: every id exactly once, nothing cut that fits, and the same rows however the documents arrive."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import Document
from pipeline.packing import Piece, cut_to_fit, merge_touching, pack_best_fit, top_up
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


def pack(found: list[Document], *, buffer_pieces: int = 1000, filler: Iterable[Piece] = ()) -> list[PackedRow]:
    pieces = (piece for document in found for piece in cut_to_fit(document, sequence_length=LENGTH))
    return list(
        pack_best_fit(
            pieces,
            sequence_length=LENGTH,
            pad_id=PAD,
            dtype=np.dtype(np.uint16),
            buffer_pieces=buffer_pieces,
            filler=filler,
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


@settings(deadline=None)
@given(documents(max_length=3 * LENGTH), documents(), st.integers(1, 50))
def test_a_filler_adds_whole_documents_and_no_row(
    found: list[Document], spare: list[Document], buffer_pieces: int
) -> None:
    """Every id of the main documents once, as without it; of the filler's, each document wholly once or not at all."""
    alone = pack(found, buffer_pieces=buffer_pieces)
    shifted = [replace(d, sample_id="f" + d.sample_id, token_ids=d.token_ids + 10_000) for d in spare]
    filler = [Piece(document, 0, len(document.token_ids), "filler") for document in shifted]
    rows = pack(found, buffer_pieces=buffer_pieces, filler=filler)
    assert len(rows) == len(alone)
    for row, before in zip(rows, alone, strict=True):
        assert row.placements[: len(before.placements)] == before.placements
        assert np.array_equal(row.token_ids[: before.num_tokens], before.token_ids[: before.num_tokens])
        assert all(place.dataset == "filler" for place in row.placements[len(before.placements) :])
    by_id = {document.sample_id: document for document in shifted}
    used = [(place, row) for row in rows for place in row.placements if place.dataset == "filler"]
    assert len({place.sample_id for place, _ in used}) == len(used)
    for place, row in used:
        assert np.array_equal(row.token_ids[place.start : place.stop], by_id[place.sample_id].token_ids)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.lists(st.integers(1, 40), max_size=60))
def test_what_a_filler_left_free_would_not_have_taken_what_was_read_of_it(free: list[int], lengths: list[int]) -> None:
    """And no more was read than there was room for: what is read and not used is told for nothing."""
    filler = iter([Piece(Document(f"f{n}", 0, "x", np.zeros(size), ()), 0, size) for n, size in enumerate(lengths)])
    added = top_up(np.array(free), filler)
    unread = len(list(filler))
    used = {piece.document.sample_id for pieces in added.values() for piece in pieces}
    left = [gap - sum(len(piece) for piece in added.get(row, [])) for row, gap in enumerate(free)]
    assert min(left) >= 0
    read = lengths[: len(lengths) - unread]
    assert all(size > max(left) for n, size in enumerate(read) if f"f{n}" not in used)
    if not sum(free):
        assert not read


def test_a_filler_is_read_about_as_far_as_there_is_room() -> None:
    """352 ids free in each of 1,000 rows take 3.9 captions each; the rows are full then, and few captions were unused."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 121, 20_000).tolist()
    filler = iter([Piece(Document(f"f{n}", 0, "x", np.zeros(size), ()), 0, size) for n, size in enumerate(lengths)])
    used = [piece for pieces in top_up(np.full(1000, 352), filler).values() for piece in pieces]
    assert sum(len(piece) for piece in used) > 0.98 * 352_000
    assert len(lengths) - len(list(filler)) < 1.05 * len(used)


def test_a_filler_of_long_documents_is_given_up_soon() -> None:
    """Nothing fits 10 free ids; a filler without end is not read on and on to find that out."""
    pieces = (Piece(Document(f"f{n}", 0, "x", np.zeros(50), ()), 0, 50) for n in itertools.count())
    assert top_up(np.full(100, 10), pieces) == {}
    assert next(pieces).document.sample_id == "f20"


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
