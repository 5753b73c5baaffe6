"""The ids of a chat are those of a packed row of the same dialogue, whatever was said and whichever tokenizer it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.chat_history import ChatForm, Exchange, oldest_to_drop
from inference.chat_session import ChatSession
from pipeline.dialogues import Turn, turns_of
from pipeline.rendering import render_document
from pipeline.templates import DialoguePreset
from shards.errors import ConfigError
from shards.modality import Modality
from shards.records import Segment
from tests.fixtures import tiny_chat
from tests.fixtures.scripted_model import scripted


def form(name: str = "chat") -> ChatForm:
    opened = tiny_chat.runtime(name)
    return ChatForm(opened.vocabulary, opened.text_tokenizer, opened.preset)


def row_of(sample, name: str):
    opened = tiny_chat.runtime(name)
    return render_document(sample, opened.templates, opened.vocabulary, opened.text_tokenizer, draw=0, seed=0)


@pytest.mark.parametrize("name", ["chat", "old"])
@settings(max_examples=30)
@given(data=st.data())
def test_turn_by_turn_a_chat_writes_the_ids_of_the_row(name: str, data: st.DataObject):
    _, sample = data.draw(tiny_chat.chats(name))
    row = row_of(sample, name)
    chat, exchanges = form(name), []
    questions = [turn for turn in turns_of(sample) if turn.role == "user"]
    for question, (_, stop) in zip(questions, row.exchanges, strict=True):
        asked = chat.ask(question)
        prompt = chat.prompt(exchanges, asked)
        assert prompt.tolist() == row.token_ids[: len(prompt)].tolist()
        assert len(prompt) == chat.num_ids(exchanges, asked)
        # A row ends an exchange with its separator, the last one without.
        answered = row.token_ids[len(prompt) : stop].tolist()
        answered = answered[: answered.index(chat.end_id) + 1]
        assert chat.close(answered) == tuple(answered)
        exchanges.append(Exchange(asked, tuple(answered)))
    assert chat.row(exchanges).tolist() == row.token_ids.tolist()


@settings(max_examples=6)
@given(chat=tiny_chat.chats(least=10))
def test_the_model_of_a_ten_turn_chat_is_fed_the_row(chat):
    """The bar: what is fed, prompt and answer, is the beginning of the packed row, in every turn (U-20)."""
    messages, sample = chat
    row = row_of(sample, "chat").token_ids.tolist()
    opened = tiny_chat.runtime()
    answers, place = [], 0
    colon = opened.text_tokenizer.encode(":")[0]
    marks = [opened.vocabulary.marker(name) for name in ("[MMGPT]", "<eos>")]
    for _ in messages:
        start = row.index(marks[0], place) + 2
        assert row[start - 1] == colon
        place = row.index(marks[1], start) + 1
        answers.append(row[start:place])
    told = scripted(opened, answers)
    told.decoding = tiny_chat.WIDE
    session = ChatSession(told, folder=tiny_chat.folder() / "law")
    for number, message in enumerate(messages):
        reply = session.ask(message)
        fed = told.model.fed[number]
        assert fed == row[: len(fed)]
        assert list(reply.token_ids) == answers[number] and reply.ended == "end"
        # All of the answer but its end was fed to say the next id, or will be with the next question.
        assert row[len(fed) :][:1] == answers[number][-1:]
    assert session.form.row(session.shown).tolist() == row


@given(data=st.data())
def test_an_answer_is_closed_once_and_holds_whole_media_only(data: st.DataObject):
    chat = form()
    block = chat.vocabulary.block("image")
    text = data.draw(st.lists(st.integers(3, 500), max_size=5))
    whole = [block.start_id, *range(block.first_id, block.first_id + 32), block.end_id]
    end = data.draw(st.sampled_from([[], [chat.end_id], [chat.vocabulary.eos_id]]))
    assert chat.close([*text, *whole, *end]) == (*text, *whole, chat.end_id)
    cut = data.draw(st.integers(1, 33))
    assert chat.close([*text, *whole, *whole[:cut]]) == (*text, *whole, chat.end_id)


@given(lengths=st.lists(st.integers(2, 40), max_size=8), context=st.integers(60, 300), room=st.integers(1, 100))
def test_only_as_many_of_the_oldest_go_as_must(lengths: list[int], context: int, room: int):
    chat = form()
    exchanges = [Exchange((3,) * (length // 2), (4,) * (length - length // 2)) for length in lengths]
    dropped = oldest_to_drop(chat, exchanges, (5, 6), context=context, room=room)
    fits = [chat.num_ids(exchanges[count:], (5, 6)) + room <= context for count in range(len(lengths) + 1)]
    assert dropped == (fits.index(True) if any(fits) else len(lengths))


def test_what_the_user_said_is_found_again():
    chat = form()
    said = Segment("user", Modality.TEXT, "draw a star")
    ids = chat.user_ids(chat.ask(Turn("user", (said,))))
    assert tiny_chat.runtime().text_tokenizer.decode(ids) == ": draw a star"


def test_a_form_whose_turns_no_token_ends_is_refused():
    opened = tiny_chat.runtime()
    preset = opened.templates.dialogue.presets["AnyGPT"]
    assert isinstance(preset, DialoguePreset)
    with pytest.raises(ConfigError, match="choose another dialogue_preset"):
        ChatForm(opened.vocabulary, opened.text_tokenizer, preset)


def test_an_empty_chat_is_its_head_and_the_end():
    chat = form()
    assert chat.row([]).tolist() == [*chat.head, chat.vocabulary.eos_id]
    assert chat.prompt([], ()).dtype == np.int64
