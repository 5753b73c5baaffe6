"""Dialogues: the loss is on what the assistant says, and the spans are where a person would put them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dialogues import Turn, chat_prompt_pieces, chat_request, conversation_pieces, dialogue_pieces, turns_of
from pipeline.pieces import write_text, write_token_ids
from pipeline.rendering import render_document
from pipeline.templates import Templates, load_templates
from pipeline.text import TextTokenizer
from shards.errors import SampleError
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary

SYSTEM = (
    "You are an AI assistant named MMGPT who can understand and generate multimodal content, including text, speech, "
    "images and audio."
)
FACE = "\U0001f5e3\ufe0f"


def say(slot: str, words: str) -> Segment:
    return Segment(slot, Modality.TEXT, words)


def show(slot: str, *codes: int) -> Segment:
    return Segment(slot, Modality.SPEECH, codes=np.array(codes, np.uint16).reshape(-1, 1), duration_s=0.02)


def dialogue(*segments: Segment) -> TokenizedSample:
    return TokenizedSample("d/0", "anyinstruct", "train", segments, Provenance("f"))


words = st.text(st.sampled_from("ab ,.?\n<>"), min_size=1, max_size=10).filter(lambda t: bool(t.strip()))
codes = st.lists(st.integers(0, 1023), min_size=1, max_size=4)


@st.composite
def dialogues(draw: st.DrawFn) -> TokenizedSample:
    segments: list[Segment] = []
    for _ in range(draw(st.integers(1, 4))):
        for slot in ("user", "assistant"):
            for kind in draw(st.lists(st.booleans(), min_size=1, max_size=3)):
                segments.append(say(slot, draw(words)) if kind else show(slot, *draw(codes)))
    return dialogue(*segments)


def by_hand(sample: TokenizedSample, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> tuple[list[int], list[bool]]:
    """The ids and which of them are trained, piece by piece, each string encoded for itself."""
    ids, trained = [vocabulary.bos_id], [False]

    def add(new: list[int], loss: bool) -> None:
        ids.extend(new)
        trained.extend([loss] * len(new))

    add(tokenizer.encode(f"{SYSTEM}\n"), False)
    turns = [(slot, list(group)) for slot, group in groupby(sample.segments, key=lambda s: s.slot)]
    for number, (slot, segments) in enumerate(turns):
        is_reply = slot == "assistant"
        add([vocabulary.marker("[MMGPT]" if is_reply else "[Human]")], False)
        if is_reply:
            add(tokenizer.encode(":"), False)
        for string, medium in strings_and_media(" " if is_reply else ": ", segments):
            add(tokenizer.encode(string) if string else [], is_reply)
            if medium is not None:
                add(vocabulary.media_token_ids("speech", medium).tolist(), is_reply)
        add([vocabulary.marker("<eos>" if is_reply else "<eoh>")], is_reply)
        add(tokenizer.encode("\n") if number + 1 < len(turns) else [], False)
    add([vocabulary.eos_id], True)
    return ids, trained


def strings_and_media(lead: str, segments: list[Segment]):
    """(string, medium after it), the strings between media; one space where nothing else separates."""
    string = lead
    before: Segment | None = None
    for segment in segments:
        if before is not None:
            ends = before.text is not None and before.text[-1].isspace()
            begins = segment.text is not None and segment.text[0].isspace()
            string += "" if ends or begins else " "
        if segment.codes is None:
            string += segment.text or ""
        else:
            yield string, segment.codes
            string = ""
        before = segment
    yield string, None


@given(sample=dialogues())
def test_spans_are_where_a_person_would_put_them(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, sample: TokenizedSample
):
    document = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    ids, trained = by_hand(sample, vocabulary, text_tokenizer)
    assert document.token_ids.tolist() == ids
    found = np.zeros(len(ids), bool)
    for begin, end in document.loss_spans:
        found[begin:end] = True
    assert found.tolist() == trained
    gaps = [right[0] - left[1] for left, right in zip(document.loss_spans, document.loss_spans[1:], strict=False)]
    assert all(gap > 0 for gap in gaps)


def test_two_turns_keep_reply_one_eos_reply_two_eos_and_the_final_mark(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    sample = dialogue(say("user", "Hi."), say("assistant", "red"), say("user", "More."), say("assistant", "circle"))
    document = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    eos = vocabulary.marker("<eos>")
    kept = [document.token_ids[begin:end].tolist() for begin, end in document.loss_spans]
    red, circle = text_tokenizer.encode(" red"), text_tokenizer.encode(" circle")
    assert (len(red), len(circle)) == (1, 1)
    assert kept == [[*red, eos], [*circle, eos, vocabulary.eos_id]]
    human = vocabulary.marker("[Human]")
    edges = [(document.token_ids[start], document.token_ids[stop - 1]) for start, stop in document.exchanges]
    assert (edges, document.borders) == ([(human, eos), (human, eos)], ())


def test_the_string_is_the_one_of_the_released_chat_form(templates: Templates, vocabulary: Vocabulary):
    spoken = [
        show("user", 1, 2),
        say("user", "Please reply"),
        say("assistant", "<-Ins-> hello\n <-Res-> Good day "),
        show("assistant", 3),
        say("assistant", " "),
    ]
    pieces = conversation_pieces(turns_of(dialogue(*spoken)), templates.preset)
    assert write_text(pieces, vocabulary) == (
        f"{SYSTEM}\n[Human]: <sosp><{FACE}1><{FACE}2><eosp> Please reply<eoh>\n"
        f"[MMGPT]: <-Ins-> hello\n <-Res-> Good day <sosp><{FACE}3><eosp> <eos>"
    )


def test_marks_of_a_reply_are_ids_in_a_reply_only(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    sample = dialogue(say("user", "what is <-Res-> ?"), say("assistant", "<-Ins-> hello\n <-Res-> Good day"))
    ids = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0).token_ids.tolist()
    assert (ids.count(vocabulary.marker("<-Ins->")), ids.count(vocabulary.marker("<-Res->"))) == (1, 1)


def test_a_transcript_heads_the_reply_to_a_spoken_request(templates: Templates, vocabulary: Vocabulary):
    told = dialogue(show("user", 1), say("transcript", "draw a star"), say("assistant", "Here."), show("assistant", 2))
    string = write_text(conversation_pieces(turns_of(told), templates.preset), vocabulary)
    assert string.endswith(
        f"<sosp><{FACE}1><eosp><eoh>\n[MMGPT]: <-Ins-> draw a star\n <-Res-> Here. <sosp><{FACE}2><eosp><eos>"
    )


def test_the_other_preset_spells_its_names_and_still_trains_on_replies(
    repository: Path, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    """The released script's own form, of which it masked every label (anygpt-compat U-02)."""
    templates = load_templates(repository / "configs" / "templates", ["preset=AnyGPT"])
    sample = dialogue(say("user", "Hi."), say("assistant", "red"))
    document = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    ((begin, end),) = document.loss_spans
    kept = document.token_ids[begin:end].tolist()
    assert text_tokenizer.decode(kept[:-1]) == " red<eom>"
    assert kept[-1] == vocabulary.eos_id


@given(sample=dialogues())
def test_the_prompt_of_a_chat_is_the_head_of_the_longer_dialogue(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, sample: TokenizedSample
):
    """History is written as it was trained, so no turn is ever seen in another shape (anygpt-compat U-20)."""
    turns = turns_of(sample)
    whole = write_token_ids(conversation_pieces(turns, templates.preset), vocabulary, text_tokenizer).token_ids
    for asked in range(1, len(turns), 2):
        pieces = chat_prompt_pieces(turns[:asked], templates.preset)
        prompt = write_token_ids(pieces, vocabulary, text_tokenizer, complete=False)
        assert prompt.token_ids.tolist() == whole[: len(prompt.token_ids)].tolist()
        assert prompt.loss_spans == ()


def test_a_prompt_can_force_words_and_a_medium(templates: Templates, vocabulary: Vocabulary):
    ask = [Turn("user", (say("user", "Go on."),))]
    pieces = chat_prompt_pieces(ask, templates.preset, reply_prefix="Sure.", force_start="<somu>")
    assert write_text(pieces, vocabulary) == f"{SYSTEM}\n[Human]: Go on.<eoh>\n[MMGPT]: Sure. <somu>"


def test_requests_are_worded_by_their_task(templates: Templates, vocabulary: Vocabulary):
    def ask(task: str, instruction: str, *media: Segment) -> str:
        turn = chat_request(task, instruction, media, templates.dialogue)
        return write_text(conversation_pieces([turn], templates.preset), vocabulary).split("[Human]: ")[1]

    assert ask("Text-to-Image Generation", "a star") == "a star. Please generation an image.<eoh>"
    assert ask("Text-to-Image Generation", "a star!") == "a star! Please generation an image.<eoh>"
    assert ask("whatever", "  hello ") == "hello<eoh>"
    voice = f"<sosp><{FACE}5><eosp>"
    suffix = "Please recognize the voice command and give reply and voice"
    assert ask("whatever", "", show("user", 5)) == f"{voice} {suffix}<eoh>"
    assert ask("Multi-Image Understanding", "Which?", show("user", 5), show("user", 5)) == (
        f"This is the first speech. {voice} This is the second speech. {voice} Which?<eoh>"
    )


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([], "turns_out_of_order"),
        ([say("assistant", "a")], "turns_out_of_order"),
        ([say("user", "a")], "dialogue_unanswered"),
        ([show("user", 1), say("user", "a")], "dialogue_unanswered"),
        ([say("system", "a")], "turns_out_of_order"),
        ([say("system", "a"), say("user", "b")], "dialogue_unanswered"),
        ([say("user", "a"), say("system", "b"), say("assistant", "c")], "turns_out_of_order"),
        ([say("user", "a"), say("narrator", "b")], "turns_out_of_order"),
        ([say("transcript", "a"), say("user", "b"), say("assistant", "c")], "turns_out_of_order"),
        ([say("user", "a"), say("assistant", " ")], "dialogue_empty"),
        ([say("user", ""), say("assistant", "b")], "dialogue_empty"),
        ([say("user", "a"), say("assistant", "b"), say("user", "\n"), say("assistant", "d")], "dialogue_empty"),
    ],
)
def test_a_dialogue_that_is_none_has_a_reason(segments: list[Segment], reason: str):
    with pytest.raises(SampleError) as raised:
        turns_of(dialogue(*segments))
    assert raised.value.reason == reason


def test_a_chat_needs_somebody_to_answer(templates: Templates):
    with pytest.raises(SampleError, match="turns_out_of_order"):
        chat_prompt_pieces([Turn("assistant", (say("assistant", "a"),))], templates.preset)


def test_a_question_nobody_answered_is_left_out(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    """Nothing can be learned from it; and no reply before it may lose its end for it."""
    answered = [say("user", "a"), say("assistant", "b")]
    asked = [show("user", 1), say("user", "c")]
    whole, cut = (
        render_document(dialogue(*segments), templates, vocabulary, text_tokenizer, draw=0, seed=0)
        for segments in (answered, answered + asked)
    )
    assert cut.token_ids.tolist() == whole.token_ids.tolist()
    assert cut.loss_spans == whole.loss_spans


def test_a_system_message_of_the_sample_takes_the_place_of_the_presets(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    told = dialogue(say("system", "Be brief."), say("user", "a"), say("assistant", "red"))
    document = render_document(told, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    written = write_text(dialogue_pieces(told, templates.preset), vocabulary)
    assert written == "Be brief.\n[Human]: a<eoh>\n[MMGPT]: red<eos>"
    (span,) = document.loss_spans
    assert document.token_ids[slice(*span)].tolist()[-2:] == [vocabulary.marker("<eos>"), vocabulary.eos_id]
    with pytest.raises(SampleError, match="media_unexpected"):
        dialogue_pieces(dialogue(show("system", 1), *told.segments[1:]), templates.preset)


def test_media_may_stand_before_or_behind_the_words_on_both_sides(templates: Templates, vocabulary: Vocabulary):
    """In whichever order the corpus has them: one space joins, and no order is changed."""
    heard = f"<sosp><{FACE}1><eosp>"
    for user in ([show("user", 1), say("user", "hi")], [say("user", "hi"), show("user", 1)]):
        for reply in ([show("assistant", 1), say("assistant", "yo")], [say("assistant", "yo"), show("assistant", 1)]):
            spelled = [" ".join(part.text or heard for part in side) for side in (user, reply)]
            pieces = dialogue_pieces(dialogue(*user, *reply), templates.preset)
            assert write_text(pieces, vocabulary) == f"{SYSTEM}\n[Human]: {spelled[0]}<eoh>\n[MMGPT]: {spelled[1]}<eos>"
