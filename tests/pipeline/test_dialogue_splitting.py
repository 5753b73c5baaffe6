"""Dialogues longer than a row: every piece is a dialogue, and every answer is trained once, behind its question."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.documents import Document
from pipeline.packing import Piece, cut_to_fit, pack_best_fit
from pipeline.rendering import render_document
from pipeline.templates import Templates
from pipeline.text import TextTokenizer
from shards.errors import SampleError
from shards.packed import PackedRow
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary

Exchange = tuple[tuple[Segment, ...], tuple[Segment, ...]]
MEDIA = {Modality.IMAGE: (8192, 1), Modality.SPEECH: (1024, 8), Modality.MUSIC: (2048, 4)}


def say(slot: str, words: str) -> Segment:
    return Segment(slot, Modality.TEXT, words)


def show(slot: str, modality: Modality, frames: int, seed: int) -> Segment:
    codebook, levels = MEDIA[modality]
    codes = np.random.default_rng(seed).integers(0, codebook, (frames, levels)).astype(np.uint16)
    return Segment(slot, modality, codes=codes, duration_s=frames / 50)


@st.composite
def turns(draw: st.DrawFn, slot: str) -> tuple[Segment, ...]:
    parts: list[Segment] = []
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            parts.append(say(slot, draw(st.text(st.sampled_from("abc ,.\n"), min_size=1, max_size=12)) + "x"))
        else:
            parts.append(
                show(slot, draw(st.sampled_from(list(MEDIA))), draw(st.integers(1, 8)), draw(st.integers(0, 9)))
            )
    return tuple(parts)


exchanges = st.lists(st.tuples(turns("user"), turns("assistant")), min_size=1, max_size=6)


def dialogue(told: list[Exchange]) -> TokenizedSample:
    segments = tuple(segment for question, answer in told for segment in (*question, *answer))
    return TokenizedSample("d/0", "anyinstruct", "train", segments, Provenance("f"))


@pytest.fixture(scope="module")
def render(templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
    def rendered(told: list[Exchange]) -> Document:
        return render_document(dialogue(told), templates, vocabulary, text_tokenizer, draw=0, seed=0)

    return rendered


def row_of(piece: Piece, sequence_length: int) -> PackedRow:
    (row,) = pack_best_fit(
        [piece], sequence_length=sequence_length, pad_id=0, dtype=np.dtype(np.uint16), buffer_pieces=1
    )
    return row


def trained(document: Document) -> list[bool]:
    found = np.zeros(len(document.token_ids), bool)
    for begin, end in document.loss_spans:
        found[begin:end] = True
    return found.tolist()


def expected_groups(sizes: list[int], opening: int, room: int) -> list[tuple[int, int, int]]:
    """(first to read, first to train, stop): as many exchanges as fit, after the one before them if that fits, too.

    Args:
        sizes: ids of each exchange with the line break behind it; the last piece of a row has ``</s>`` in its place.
    """
    groups: list[tuple[int, int, int]] = []
    first = 0
    while first < len(sizes):
        read = first - 1 if first and opening + sizes[first - 1] + sizes[first] <= room else first
        stop = first + 1
        while stop < len(sizes) and opening + sum(sizes[read : stop + 1]) <= room:
            stop += 1
        groups.append((read, first, stop))
        first = stop
    return groups


@given(told=exchanges, more=st.integers(0, 60))
def test_every_piece_is_the_dialogue_of_its_exchanges_and_trains_each_once(render, told: list[Exchange], more: int):
    """Ids: what the template writes for these turns alone. Loss: on what the piece has not repeated."""
    whole = render(told)
    # One exchange alone tells how long it is: with the opening in front, "</s>" where the line break would be.
    alone = [len(render([exchange]).token_ids) for exchange in told]
    opening = whole.exchanges[0][0]
    room = max(alone) + more
    pieces = cut_to_fit(whole, sequence_length=room)
    groups = expected_groups([size - opening for size in alone], opening, room)
    assert len(pieces) == len(groups)
    for piece, (read, first, stop) in zip(pieces, groups, strict=True):
        row, own = row_of(piece, room), render(told[read:stop])
        assert row.token_ids[: row.num_tokens].tolist() == own.token_ids.tolist()
        context = opening if read == first else own.exchanges[first - read][0]
        found = np.zeros(row.num_tokens, bool)
        for begin, end in row.loss_spans:
            found[begin:end] = True
        assert found.tolist() == [False] * context + trained(own)[context:]
        assert (len(row.placements), row.placements[0].offset > 0) == (1, first > 0)


@given(told=exchanges)
def test_a_dialogue_that_fits_stays_whole(render, told: list[Exchange]):
    whole = render(told)
    assert cut_to_fit(whole, sequence_length=len(whole.token_ids)) == [Piece(whole, 0, len(whole.token_ids))]


@given(told=exchanges)
def test_an_exchange_that_fits_no_row_refuses_the_dialogue(render, told: list[Exchange]):
    """Half an exchange would be a question without its answer, or an answer without its question."""
    whole = render(told)
    longest = max(len(render([exchange]).token_ids) for exchange in told)
    assume(len(whole.token_ids) > longest)
    with pytest.raises(SampleError) as raised:
        cut_to_fit(whole, sequence_length=longest - 1)
    assert raised.value.reason == "exchange_longer_than_row"
    with pytest.raises(SampleError) as raised:
        cut_to_fit(whole, sequence_length=len(whole.token_ids) - 1, long_documents="reject")
    assert raised.value.reason == "longer_than_row"


def test_a_human_can_follow_one(render, vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
    """Three exchanges in rows for two: the second is told again, so that "the same" has something to be the same as."""
    told = [
        ((say("user", ask),), (say("assistant", answer),)) for ask, answer in (("a", "red"), ("b", "red"), ("c", "red"))
    ]
    whole = render(told)
    two = len(render(told[:2]).token_ids)
    first, second = (row_of(piece, two) for piece in cut_to_fit(whole, sequence_length=two))
    red = [*text_tokenizer.encode(" red"), vocabulary.marker("<eos>")]

    def losses(row: PackedRow) -> list[list[int]]:
        return [row.token_ids[begin:end].tolist() for begin, end in row.loss_spans]

    assert losses(first) == [red, [*red, vocabulary.eos_id]]
    assert losses(second) == [[*red, vocabulary.eos_id]]
    assert second.token_ids[: second.num_tokens].tolist() == render(told[1:]).token_ids.tolist()
