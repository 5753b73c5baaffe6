"""Ids are read as they come: whole characters, whole media, marks taken away, whatever is cut where."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.chat_messages import TextDelta
from inference.chat_reading import ClosedMedium, IdReader, read_ids
from shards.errors import SampleError
from shards.modality import Modality
from shards.vocabulary import Vocabulary
from tests.fixtures import tiny_chat


def opened():
    return tiny_chat.runtime().vocabulary, tiny_chat.runtime().text_tokenizer


def deltas(ids: list[int], vocabulary: Vocabulary) -> list[TextDelta | ClosedMedium]:
    reader = IdReader(vocabulary, opened()[1])
    return [event for one in ids for event in reader.push(one)] + reader.finish()


@given(text=st.text(st.sampled_from("aé€😀漢 \n<-IR"), max_size=20))
def test_what_comes_is_the_text_in_whole_characters(text: str):
    """A byte-level tokenizer cuts characters anywhere; what is shown never has half of one, and adds up to the text."""
    vocabulary, tokenizer = opened()
    shown = deltas(tokenizer.encode(text), vocabulary)
    assert all("\ufffd" not in one.text for one in shown)
    assert "".join(one.text for one in shown) == text.strip()


@pytest.mark.parametrize("name", ["chat", "old"])
@given(data=st.data())
def test_words_and_media_come_back_in_order(name: str, data: st.DataObject):
    runtime = tiny_chat.runtime(name)
    vocabulary, ids, expected = runtime.vocabulary, [], []
    for kind in data.draw(
        st.lists(st.sampled_from([None, Modality.IMAGE, Modality.SPEECH, Modality.MUSIC]), max_size=6)
    ):
        if kind is None:
            said = data.draw(tiny_chat.words.filter(lambda text: "�" not in text))
            ids += runtime.text_tokenizer.encode(f" {said}")
            last = expected[-1] if expected else None
            expected = [*expected[:-1], f"{last} {said}"] if isinstance(last, str) else [*expected, said]
        else:
            codes = tiny_chat.made_up(vocabulary, kind, data.draw(st.integers(0, 50)))
            ids += vocabulary.media_token_ids(kind, codes).tolist()
            expected.append((kind, codes.tolist()))
    read = read_ids(ids, vocabulary, runtime.text_tokenizer)
    found = [one.text if isinstance(one, TextDelta) else (one.modality, one.codes.tolist()) for one in read]
    squeezed = [" ".join(one.split()) if isinstance(one, str) else one for one in found]
    assert squeezed == [" ".join(one.split()) if isinstance(one, str) else one for one in expected]


@pytest.mark.parametrize("spelled", [False, True])
def test_what_was_heard_is_told_from_the_reply(spelled: bool):
    vocabulary, tokenizer = opened()
    markers = vocabulary.markers
    if spelled:  # a stage-1 vocabulary, which has no ids for the marks: both ends of the list are kept contiguous
        kept = {name: one for name, one in markers.items() if not name.startswith("<-")}
        spare = {f"unused {number}": markers[name] for number, name in enumerate(("<-Res->", "<-Ins->"))}
        vocabulary = replace(vocabulary, markers=kept | spare)
        ids = tokenizer.encode(" <-Ins-> draw a star\n <-Res-> Here it is.")
    else:
        ids = [*tokenizer.encode(" "), markers["<-Ins->"], *tokenizer.encode(" draw a star\n ")]
        ids += [markers["<-Res->"], *tokenizer.encode(" Here it is.")]
    ids += vocabulary.media_token_ids("speech", tiny_chat.made_up(vocabulary, Modality.SPEECH, 3)).tolist()
    heard, reply, voice = read_ids(ids, vocabulary, tokenizer)
    assert heard == TextDelta("draw a star", heard=True) and reply == TextDelta("Here it is.")
    assert isinstance(voice, ClosedMedium) and voice.modality == Modality.SPEECH


def test_a_mark_that_a_user_types_is_text_where_marks_are_ids():
    vocabulary, tokenizer = opened()
    assert read_ids(tokenizer.encode(" a <-Ins-> b"), vocabulary, tokenizer) == [TextDelta("a <-Ins-> b")]


def test_a_medium_is_shown_when_it_is_closed_and_not_before():
    vocabulary, _ = opened()
    ids = vocabulary.media_token_ids("image", tiny_chat.made_up(vocabulary, Modality.IMAGE, 0)).tolist()
    assert deltas(ids[:-1], vocabulary) == []
    assert [type(one) for one in deltas(ids, vocabulary)] == [ClosedMedium]


def test_music_whose_levels_are_out_of_order_is_none():
    """The released code takes the level from the place and reads any digits (anygpt-compat U-23)."""
    vocabulary, _ = opened()
    ids = vocabulary.media_token_ids("music", tiny_chat.made_up(vocabulary, Modality.MUSIC, 1)).tolist()
    ids[1], ids[2] = ids[2], ids[1]
    with pytest.raises(SampleError, match="levels_out_of_order"):
        deltas(ids, vocabulary)
