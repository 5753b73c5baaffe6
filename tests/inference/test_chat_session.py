"""Chats: whatever the model does, roles stay in order, media are whole, and a file is where its path says it is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.chat_grammar import fit_turn
from inference.chat_session import (
    ChatSession,
    FilePart,
    Finished,
    MediaReady,
    TextDelta,
    TextPart,
    UserMessage,
)
from inference.decoding import DecodingConfig, ModalityDecoding
from inference.grammar import accepts
from pipeline.dialogues import chat_prompt_pieces, chat_request
from pipeline.pieces import write_token_ids
from shards.errors import ConfigError, DatasetError, FingerprintMismatch, SampleError
from shards.modality import Modality
from tests.fixtures import tiny_chat
from tests.fixtures.scripted_model import scripted


def say(words: str, **options) -> UserMessage:
    return UserMessage((TextPart(words),), **options)


def told(*answers: list[int], context: int = 1 << 20):
    """A runtime that gives these answers, with room for them."""
    runtime = scripted(tiny_chat.runtime(), answers, context=context)
    runtime.decoding = tiny_chat.WIDE
    return runtime


def words_of(text: str) -> list[int]:
    return tiny_chat.runtime().text_tokenizer.encode(f" {text}")


def medium(modality: Modality, seed: int = 0) -> list[int]:
    vocabulary = tiny_chat.runtime().vocabulary
    return vocabulary.media_token_ids(modality, tiny_chat.made_up(vocabulary, modality, seed)).tolist()


def eos() -> int:
    return tiny_chat.runtime().vocabulary.marker("<eos>")


def roles(session: ChatSession) -> list[int]:
    vocabulary = session.runtime.vocabulary
    who = {vocabulary.marker("[Human]"): "user", vocabulary.marker("[MMGPT]"): "assistant"}
    return [who[one] for one in session.form.row(session.shown).tolist() if one in who]


def test_an_answer_that_never_ends_is_closed_and_roles_stay_in_order(tmp_path: Path):
    """U-21: the released code keeps the question without a reply, and all later turns change sides."""
    endless = words_of("red") * 10_000
    session = ChatSession(told(endless, [*words_of("yes"), tiny_chat.runtime().vocabulary.eos_id]), folder=tmp_path)
    reply = session.ask(say("Go on."))
    assert reply.ended == "length" and reply.token_ids[-1] == eos() and len(reply.token_ids) > 100
    second = session.ask(say("And now?"))
    # The model said ``</s>``; a row has ``<eos>`` there.
    assert second.ended == "end" and second.token_ids == (*words_of("yes"), eos())
    assert roles(session) == ["user", "assistant"] * 2


def test_a_sound_longer_than_all_its_words_does_not_cut_an_answer(tmp_path: Path):
    """Media are not counted as words; a spoken answer is longer than any text."""
    long = [*medium(Modality.SPEECH)[:1], *medium(Modality.SPEECH)[1:2] * 40, *medium(Modality.SPEECH)[-1:]]
    runtime = told([*words_of("Listen"), *long, eos()], [*long, *words_of("That was it"), eos()])
    runtime.decoding = DecodingConfig(
        modality={
            Modality.TEXT: ModalityDecoding(max_new_tokens=16),
            Modality.SPEECH: ModalityDecoding(max_new_tokens=40),
        }
    )
    session = ChatSession(runtime, folder=tmp_path)
    assert session.ask(say("Speak.")).ended == "end"
    assert session.ask(say("Speak, then write.")).text == "That was it"


@pytest.mark.parametrize("wanted", [None, Modality.TEXT, Modality.IMAGE])
@pytest.mark.parametrize("file", [None, Modality.SPEECH])
def test_an_answer_has_as_many_ids_as_the_preset_wants_at_least(
    tmp_path: Path, wanted: Modality | None, file: Modality | None
):
    """``min_new_tokens`` of a chat; in the released code it had no effect (anygpt-compat 5.3)."""
    runtime = told([*(medium(wanted) if wanted == Modality.IMAGE else []), eos()])
    least = ModalityDecoding(min_new_tokens=50, max_new_tokens=60)
    runtime.decoding = DecodingConfig(modality=dict(tiny_chat.WIDE.modality), chat_text=least)
    parts = (FilePart(tiny_chat.files()[file]),) if file is not None else (TextPart("Well?"),)
    reply = ChatSession(runtime, folder=tmp_path).ask(UserMessage(parts, to_modality=wanted))
    assert 50 < len(reply.token_ids) <= 62 + 34


def test_every_medium_of_an_answer_is_kept_and_saved(tmp_path: Path):
    """The released chat keeps one item a modality (5.4), and prints another path than it saves (U-25)."""
    said = [*words_of("One."), *medium(Modality.IMAGE, 1), *words_of("Two."), *medium(Modality.IMAGE, 2)]
    said += [*medium(Modality.MUSIC, 3), eos()]
    session = ChatSession(told(said), folder=tmp_path / "a b")
    reply = session.ask(say("Two pictures/and | a tune: " + "x" * 300))
    assert [part.modality for part in reply.media] == [Modality.IMAGE, Modality.IMAGE, Modality.MUSIC]
    assert reply.text == "One. Two." and reply.token_ids == tuple(said)
    assert sorted(part.path for part in reply.media) == sorted((tmp_path / "a b").iterdir())
    shown = [np.asarray(Image.open(part.path)) for part in reply.media[:2]]
    codes = [tiny_chat.made_up(session.runtime.vocabulary, Modality.IMAGE, seed) for seed in (1, 2)]
    for picture, one in zip(shown, codes, strict=True):
        assert (picture == session.runtime.decode(Modality.IMAGE, one)).all()


def test_words_come_at_once_and_media_when_they_are_closed(tmp_path: Path):
    session = ChatSession(told([*words_of("a red one"), *medium(Modality.IMAGE), eos()]), folder=tmp_path)
    events = list(session.stream(say("Draw.")))
    assert [type(event) for event in events] == [*[TextDelta] * (len(events) - 2), MediaReady, Finished]
    assert "".join(event.text for event in events[:-2]) == "a red one" and len(events) > 4
    assert events[-1].reply.parts == (TextDelta("a red one"), events[-2])


def test_an_answer_that_is_broken_off_is_forgotten_with_its_question(tmp_path: Path):
    session = ChatSession(told([*words_of("a red one"), eos()], [*words_of("yes"), eos()]), folder=tmp_path)
    next(iterator := session.stream(say("Draw.")))
    iterator.close()
    assert session.said == []
    with pytest.raises(SampleError, match="media_missing"):
        session.ask(UserMessage((FilePart(tmp_path / "none.png"),)))
    assert session.said == [] and session.ask(say("Well?")).text == "yes"
    assert roles(session) == ["user", "assistant"]


def test_a_voice_that_cannot_be_spoken_in_is_told_before_anything_is_said(tmp_path: Path):
    session = ChatSession(told([*words_of("yes"), eos()]), folder=tmp_path)
    with pytest.raises(ConfigError, match="expected a vocoder to speak in its voice"):
        session.ask(say("Speak like this.", voice_prompt=tiny_chat.files()[Modality.SPEECH]))
    assert session.said == [] and session.runtime.model.fed == []
    assert session.ask(say("Then so.")).text == "yes"


@pytest.mark.parametrize("wanted", list(Modality)[:4])
def test_what_is_asked_for_is_in_the_answer_of_any_model(tmp_path: Path, wanted: Modality):
    """Random weights; the grammar makes the answer."""
    session = ChatSession(tiny_chat.runtime(), seed=3, folder=tmp_path)
    reply = session.ask(say("Whatever.", to_modality=wanted))
    found = {part.modality for part in reply.media}
    assert found == (set() if wanted == Modality.TEXT else {wanted})
    assert all(part.path.is_file() for part in reply.media)


def test_random_answers_are_decodable_and_history_only_grows(tmp_path: Path):
    """At most whole media (U-23), and what was fed in a turn begins what is fed in the next (U-20)."""
    session = ChatSession(tiny_chat.runtime(), seed=1, folder=tmp_path, context=2000)
    media, before = list(tiny_chat.files().items()), []
    for number in range(4):
        kind, file = media[number % 3]
        session.ask(UserMessage((FilePart(file, kind), TextPart("What is it?"))))
        prompt = session.form.prompt(session.shown, ()).tolist()
        assert prompt[: len(before)] == before and prompt[-1] == session.form.separator[-1]
        before = prompt
    for one in session.said:
        assert one.exchange.answered.count(eos()) == 1 and one.exchange.answered[-1] == eos()


def test_what_outgrows_the_context_leaves_by_whole_exchanges(tmp_path: Path):
    answers = [[*words_of(f"answer {number}"), eos()] for number in range(12)]
    session = ChatSession(told(*answers, context=300), folder=tmp_path)
    notices = [session.ask(say(f"Question {number} of twelve, with some more words.")).notices for number in range(12)]
    assert session.dropped > 0 and len(session.said) == 12
    assert sum(bool(notice) for notice in notices) > 0 and all(
        "left out" in notice for (notice,) in filter(None, notices)
    )
    for fed in session.runtime.model.fed:
        assert tuple(fed[: len(session.form.head)]) == session.form.head and len(fed) <= 300
        assert fed.count(eos()) + 1 == fed.count(session.form.user_id)
    assert fed[len(session.form.head)] == session.form.user_id


def test_a_message_that_leaves_no_room_is_told(tmp_path: Path):
    session = ChatSession(told([eos()]), folder=tmp_path)
    session.context = len(session.form.head) + 40
    with pytest.raises(ConfigError, match="say less"):
        session.ask(say("so many words " * 40))
    with pytest.raises(ConfigError, match="leave no room for image"):
        session.ask(say("Hi.", to_modality=Modality.IMAGE))
    assert session.said == []


@pytest.mark.parametrize("spoken", [False, True])
@pytest.mark.parametrize("wanted", [None, *list(Modality)[:4]])
def test_no_answer_can_outgrow_the_context(spoken: bool, wanted: Modality | None):
    """The longest answer that the grammar lets through fits behind the prompt, and is accepted."""
    runtime, asked = told(), tuple([5] * 60)
    form = ChatSession(runtime).form
    for context in (350, 500, 4000):
        fitted = fit_turn(runtime, form, [], asked, to_modality=wanted, is_spoken=spoken, context=context)
        for prefer_media in (False, True):
            answer = longest(fitted.grammar, prefer_media=prefer_media)
            assert accepts(fitted.grammar, answer)
            assert form.num_ids([], asked) + len(answer) <= context


def longest(grammar, *, prefer_media: bool) -> list[int]:
    """Never ends where it need not; begins media at every chance, or as late as it can."""
    vocabulary, starts = grammar.vocabulary, list(getattr(grammar, "_starts", {}))
    ends = [*grammar.end_ids, *vocabulary.markers.values(), *(block.end_id for block in vocabulary.blocks.values())]
    choices: dict[int, tuple[int, int | None]] = {}
    for number, rule in enumerate(grammar.rules):
        going = [*rule.ids[~np.isin(rule.ids, ends)].tolist(), int(rule.ids[0])]
        begin = rule.ids[np.isin(rule.ids, starts)].tolist()
        choices[number] = (going[0], begin[-1] if begin else None)
    answer, state = [], grammar.start()
    late = getattr(grammar, "_room", 1) - 1
    while not state.ended:
        going, begin = choices[grammar.rule(state)]
        answer.append(begin if begin is not None and (prefer_media or state.used >= late) else going)
        state = grammar.step(state, answer[-1])
    return answer


def test_a_spoken_question_is_answered_by_what_was_heard_a_text_and_a_voice(tmp_path: Path):
    vocabulary, tokenizer = tiny_chat.runtime().vocabulary, tiny_chat.runtime().text_tokenizer
    said = [*tokenizer.encode(" "), vocabulary.marker("<-Ins->"), *tokenizer.encode(" hello\n ")]
    said += [vocabulary.marker("<-Res->"), *words_of("Good day."), *medium(Modality.SPEECH), eos()]
    session = ChatSession(told(said), folder=tmp_path)
    reply = session.ask(UserMessage((FilePart(tiny_chat.files()[Modality.SPEECH]),)))
    assert (reply.heard, reply.text) == ("hello", "Good day.") and reply.token_ids == tuple(said)
    assert [part.modality for part in reply.media] == [Modality.SPEECH]


def test_published_weights_are_told_what_to_do_with_a_voice():
    """The words of anygpt-compat 3.5 and 5.1, where the model was trained on them and nowhere else."""
    speech = tiny_chat.files()[Modality.SPEECH]
    message = UserMessage((FilePart(speech, Modality.SPEECH), TextPart("Reply kindly.")))
    for name in ("old", "chat"):
        runtime = scripted(tiny_chat.runtime(name), [[5, tiny_chat.runtime(name).vocabulary.marker("<eos>")]])
        session = ChatSession(runtime)
        session.ask(message)
        heard = tiny_chat.encoded(name, Modality.SPEECH)
        heard = replace(heard, slot="user")
        template = runtime.templates.dialogue
        turn = chat_request("interleaved", "Reply kindly.", [heard], template)
        if name == "chat":
            turn = replace(turn, segments=turn.segments[:-1])
        pieces = chat_prompt_pieces([turn], runtime.preset)
        ids = write_token_ids(pieces, runtime.vocabulary, runtime.text_tokenizer, complete=False).token_ids.tolist()
        assert runtime.model.fed[0][: len(ids)] == ids


def test_a_task_of_the_template_words_the_message():
    session = ChatSession(told([*words_of("a"), eos()]))
    session.ask(say("a star", task="Text-to-Image Generation"))
    asked = session.form.user_ids(session.said[0].exchange.asked)
    assert session.runtime.text_tokenizer.decode(asked) == ": a star. Please generation an image."


def test_a_saved_chat_goes_on_as_it_would_have(tmp_path: Path):
    runtime = tiny_chat.runtime()
    session = ChatSession(runtime, seed=5, folder=tmp_path / "media")
    picture = FilePart(tiny_chat.files()[Modality.IMAGE])
    session.ask(UserMessage((picture, TextPart("What is it?")), to_modality=Modality.IMAGE))
    session.save(tmp_path / "chat.json")
    loaded = ChatSession.load(tmp_path / "chat.json", runtime)
    assert [one.exchange for one in loaded.said] == [one.exchange for one in session.said]
    assert [one.resolve() for one in loaded.said[0].files] == [one.resolve() for one in session.said[0].files]
    asked = [chat.ask(say("And this?", to_modality=Modality.TEXT)) for chat in (session, loaded)]
    assert asked[0].token_ids == asked[1].token_ids
    assert {path.name for path in tmp_path.iterdir()} == {"chat.json", "media"}


def test_a_chat_of_another_model_or_a_damaged_one_is_refused_and_nothing_is_lost(tmp_path: Path):
    old = ChatSession(scripted(tiny_chat.runtime("old"), [[1, 2]]))
    old.save(tmp_path / "old.json")
    session = ChatSession(told([*words_of("yes"), eos()]))
    session.ask(say("Hello."))
    session.save(tmp_path / "chat.json")
    whole = (tmp_path / "chat.json").read_text(encoding="utf-8")
    with pytest.raises(FingerprintMismatch, match="open it with the model"):
        session.restore(tmp_path / "old.json")
    damaged = {"cut": whole[: len(whole) // 2], "empty": "", "list": "[]", "roles": whole.replace(f"{eos()}]", "5]")}
    damaged["ids"] = whole.replace('"answered": [', '"answered": [999999, ')
    damaged["keys"] = whole.replace('"seed"', '"sead"')
    for name, text in damaged.items():
        assert text != whole
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match="expected a chat"):
            session.restore(tmp_path / name)
    with pytest.raises(DatasetError, match="expected a saved chat"):
        session.restore(tmp_path / "none.json")
    assert len(session.said) == 1


def test_a_cleared_chat_begins_anew_and_writes_over_no_file(tmp_path: Path):
    answer = [*medium(Modality.IMAGE), eos()]
    session = ChatSession(told(answer, answer), folder=tmp_path)
    session.ask(say("Draw."))
    session.clear()
    session.ask(say("Draw."))
    first, second = session.runtime.model.fed
    assert first == second and len(list(tmp_path.iterdir())) == 2


def test_two_chats_of_one_output_have_folders_of_their_own(tmp_path: Path):
    runtime = told(*[[*medium(Modality.IMAGE), eos()]] * 2)
    runtime.config = runtime.config.model_copy(update={"output": tmp_path})
    paths = [ChatSession(runtime).ask(say("Draw.")).media[0].path for _ in range(2)]
    assert len({path.parent for path in paths}) == 2 and all(path.is_file() for path in paths)


def test_a_medium_without_a_codec_is_not_begun_and_cannot_be_asked_for(tmp_path: Path):
    runtime = tiny_chat.runtime()
    codecs = {Modality.IMAGE: runtime.config.codecs[Modality.IMAGE]}
    runtime = replace(runtime, config=runtime.config.model_copy(update={"codecs": codecs}))
    session = ChatSession(runtime, folder=tmp_path)
    replies = [session.ask(say(f"{number}")) for number in range(3)]
    assert {part.modality for part in itertools.chain(*(reply.media for reply in replies))} <= {Modality.IMAGE}
    with pytest.raises(ConfigError, match=r"codecs\.music"):
        session.ask(say("Play.", to_modality=Modality.MUSIC))
