"""Dialogues are scored turn by turn and on the model's own: one that knows them by heart is right, others are wrong where
they are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.answers import Said, said_by_ids, said_in
from evaluation.dialogues import examine_dialogues
from evaluation.heldout import Examiner, HeldoutConfig, TaskResult
from evaluation.page import write_page
from evaluation.rightness import named_attributes
from inference.model import LoadedModel
from pipeline.dialogues import USER, Turn, dialogue_pieces, turns_of
from pipeline.pieces import write_token_ids
from pipeline.sample_corpora import music, pictures, speech
from pipeline.templates import load_templates
from pipeline.text import load_text_tokenizer
from pipeline.vocabularies import load_vocabulary
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality
from tests.evaluation.test_page import CURVES, REPORT
from tests.fixtures.tiny_inference import REPOSITORY, write_text_tokenizer

FRAMES = {Modality.IMAGE: (32, 1), Modality.SPEECH: (20, 8), Modality.MUSIC: (50, 4)}
REPLIES = ("Here is your star.", "Here is your circle.", "Here is your diamond.")
STAR = pictures.PictureAttributes("star", "red", "white", "center")
CIRCLE = pictures.PictureAttributes("circle", "blue", "white", "center")
FLUTE = music.MusicAttributes("flute", "C major", "fast", "drone")
BELL = music.MusicAttributes("bell", "G major", "slow", "arpeggio")


class Rendering:
    """Codes that number what is rendered: what a codec would give if it lost nothing."""

    name, sample_rate_hz = "rendering", 16_000

    def __init__(self, modality: Modality) -> None:
        self.modality = modality

    def decode(self, batch: Sequence[np.ndarray]) -> list[Any]:
        return [self._render(int(codes[0, 0])) for codes in batch]

    def _render(self, number: int) -> Any:
        if self.modality == Modality.IMAGE:
            return np.asarray(pictures.render_picture(pictures.all_attributes()[number]))
        if self.modality == Modality.MUSIC:
            return music.render_music(music.all_attributes()[number], duration_s=1.0)
        return speech.synthesize(REPLIES[number], speech.VOICES[0])


class Recall:
    """A causal language model that continues what it has read before, and else ends its turn."""

    device = torch.device("cpu")

    def __init__(self, known: Sequence[Sequence[int]], *, size: int, otherwise: int) -> None:
        self._known, self._size, self._otherwise = [list(ids) for ids in known], size, otherwise

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, past_key_values: Any, **_: Any) -> Any:
        if past_key_values is None:
            past_key_values = _Cache([[] for _ in input_ids])
            input_ids = [row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True)]
        logits = torch.zeros(len(input_ids), 1, self._size)
        for nth, (read, new) in enumerate(zip(past_key_values.rows, input_ids, strict=True)):
            read += new.tolist()
            logits[nth, 0, self._next(read)] = 1.0
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)

    def _next(self, read: list[int]) -> int:
        return next((ids[len(read)] for ids in self._known if ids[: len(read)] == read), self._otherwise)


class _Cache:
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def batch_select_indices(self, index: torch.Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in index.tolist()]


def shown(slot: str, modality: Modality, what: Any) -> Segment:
    worlds = {Modality.IMAGE: pictures.all_attributes, Modality.MUSIC: music.all_attributes}
    number = worlds[modality]().index(what) if modality in worlds else REPLIES.index(what)
    return Segment(slot, modality, codes=np.full(FRAMES[modality], number, np.uint16))


def said(slot: str, text: str) -> Segment:
    return Segment(slot, Modality.TEXT, text)


def dialogue(name: str, *segments: Segment) -> TokenizedSample:
    return TokenizedSample(name, "anyinstruct", "heldout", segments, Provenance("metadata.jsonl"))


def drawn(name: str, picture: pictures.PictureAttributes, colour: str) -> TokenizedSample:
    """Draw, then ask about what was drawn."""
    return dialogue(
        name,
        said("user", "Draw a red star."),
        *(said("assistant", "Here it is."), shown("assistant", Modality.IMAGE, picture)),
        said("user", "What colour is it?"),
        said("assistant", f"It is {colour}."),
    )


def voiced(
    name: str, heard: str, reply: str, picture: pictures.PictureAttributes, *, asked: str = REPLIES[0]
) -> TokenizedSample:
    return dialogue(
        name,
        shown("user", Modality.SPEECH, asked),
        said("transcript", heard),
        *(said("assistant", reply), shown("assistant", Modality.IMAGE, picture)),
        shown("assistant", Modality.SPEECH, reply),
    )


def played(name: str, piece: music.MusicAttributes) -> TokenizedSample:
    return dialogue(
        name,
        said("user", "Play fast music on the flute."),
        *(said("assistant", "Listen."), shown("assistant", Modality.MUSIC, piece)),
        *(said("user", "And this?"), shown("user", Modality.MUSIC, BELL)),
        said("assistant", "This is slow music on the bell."),
    )


TRUTH = (
    drawn("a", STAR, "red"),
    voiced("b", "Draw a blue circle.", "Here is your circle.", CIRCLE),
    played("c", FLUTE),
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    tokenizer = load_text_tokenizer(write_text_tokenizer(tmp_path_factory.mktemp("text")))
    vocabulary = load_vocabulary(REPOSITORY / "configs" / "vocabulary" / "tiny.toml", text_tokenizer=tokenizer)
    return vocabulary, tokenizer, load_templates(REPOSITORY / "configs" / "templates")


@pytest.fixture(scope="module")
def examine(tools: Any) -> Iterator[Any]:
    """Examine a model that knows some dialogues by heart on the true ones."""
    vocabulary, tokenizer, templates = tools

    def run(known: Sequence[TokenizedSample], truth: Sequence[TokenizedSample] = TRUTH) -> TaskResult:
        rows = [write_token_ids(dialogue_pieces(one, templates.preset), vocabulary, tokenizer) for one in known]
        end = vocabulary.markers["<eos>"]
        model = Recall([row.token_ids.tolist() for row in rows], size=vocabulary.size, otherwise=end)
        detokenizers = {modality: Rendering(modality) for modality in FRAMES}
        examiner = Examiner(LoadedModel(model, vocabulary, tokenizer), templates, detokenizers, HeldoutConfig())
        return examine_dialogues(examiner, truth)

    yield run


def test_who_knows_the_dialogues_by_heart_is_right_in_every_figure(examine: Any) -> None:
    figures = examine(TRUTH).figures
    kinds = {
        f"dialogue_{kind}_{what}"
        for kind in ("draw", "look", "play", "listen", "voice")
        for what in ("modality", "content")
    }
    parts = {"dialogue_voice_heard", "dialogue_voice_reply", "dialogue_voice_speech", "dialogue_voice_picture"}
    alone = {"dialogue_alone_modality", "dialogue_alone_content", "dialogue_alone_whole"}
    assert set(figures) == kinds | parts | alone | {"dialogue_modality", "dialogue_content"}
    assert set(figures.values()) == {1.0}


def test_who_says_nothing_is_wrong_in_every_figure_but_the_modality_of_words(examine: Any) -> None:
    figures = examine([]).figures
    assert figures["dialogue_look_modality"] == figures["dialogue_listen_modality"] == 1.0
    assert (
        figures["dialogue_draw_modality"]
        == figures["dialogue_play_modality"]
        == figures["dialogue_voice_modality"]
        == 0
    )
    assert {value for name, value in figures.items() if not name.endswith("_modality")} == {0.0}


def test_only_what_a_request_names_can_be_wrong(examine: Any) -> None:
    """Nobody said where the star is to be, nor in which key to play."""
    moved = replace(STAR, position="left", background="black")
    other_key = replace(FLUTE, key="E minor", pattern="arpeggio")
    figures = examine([drawn("a", moved, "red"), TRUTH[1], played("c", other_key)]).figures
    assert figures["dialogue_draw_content"] == figures["dialogue_play_content"] == 1.0
    figures = examine([drawn("a", CIRCLE, "blue"), TRUTH[1], played("c", replace(FLUTE, tempo="slow"))]).figures
    assert (figures["dialogue_draw_content"], figures["dialogue_play_content"]) == (0.0, 0.5)
    assert figures["dialogue_draw_modality"] == figures["dialogue_play_modality"] == 1.0


def test_an_early_mistake_costs_what_follows_only_where_the_history_is_the_models_own(examine: Any) -> None:
    """It draws a circle and then, rightly for what it drew, says blue; after the true picture it says red."""
    figures = examine([drawn("a", CIRCLE, "blue"), TRUTH[0]], TRUTH[:1]).figures
    assert (figures["dialogue_draw_content"], figures["dialogue_look_content"]) == (0.0, 1.0)
    assert (figures["dialogue_alone_content"], figures["dialogue_alone_whole"]) == (0.0, 0.0)
    assert figures["dialogue_alone_modality"] == 1.0


def test_each_part_of_a_spoken_answer_is_judged_by_itself(examine: Any) -> None:
    wrong_words = voiced("b", "Draw a blue star.", "Here is your circle.", CIRCLE)
    figures = examine([wrong_words], TRUTH[1:2]).figures
    assert figures["dialogue_voice_heard"] == 0.75
    assert (
        figures["dialogue_voice_reply"] == figures["dialogue_voice_speech"] == figures["dialogue_voice_picture"] == 1.0
    )
    others = (*TRUTH[1:2], voiced("d", "Draw a red star.", "Here is your star.", STAR, asked=REPLIES[1]))
    wrong_sound = (*wrong_words.segments[:-1], shown("assistant", Modality.SPEECH, "Here is your star."))
    figures = examine([replace(wrong_words, segments=wrong_sound)], others).figures
    assert figures["dialogue_voice_speech"] == 0.0
    silent = replace(wrong_words, segments=wrong_words.segments[:-1])
    assert examine([silent], TRUTH[1:2]).figures["dialogue_voice_modality"] == 0.0


def test_conversations_are_on_the_page_with_pictures_and_players(examine: Any) -> None:
    result = examine(TRUTH)
    assert [one.sample_id for one in result.conversations] == ["a", "b", "c"]
    assert [bubble.who for bubble in result.conversations[0].bubbles] == ["user", "answer", "truth"] * 2
    page = write_page("t", REPORT, CURVES, [result], {modality: Rendering(modality) for modality in FRAMES})
    assert page.count("data:image/png") == 4  # drawn by the model and in truth, in two dialogues
    assert page.count("<audio") == 3 + 3  # voices: asked, answered, true; music: played, true, shown
    assert "heard: Draw a blue circle." in page and page.count("class='bubble answer'") == 5
    assert not re.search(r"(?:src|href)=['\"](?!data:)", page)


def test_a_turn_is_taken_apart_as_it_was_put_together(tools: Any) -> None:
    vocabulary, tokenizer, templates = tools
    for sample in TRUTH:
        truth = turns_of(sample)[1]
        written = write_token_ids(dialogue_pieces(sample, templates.preset), vocabulary, tokenizer)
        begin, end = written.loss_spans[0]
        apart = said_by_ids(written.token_ids[begin:end].tolist(), vocabulary, tokenizer)
        true = said_in(truth.segments)
        assert (apart.heard, apart.text, apart.modalities) == (true.heard, true.text, true.modalities)
        for (modality, codes), (_, true_codes) in zip(apart.media, true.media, strict=True):
            levels = vocabulary.block(modality).levels
            assert np.array_equal(codes, true_codes[:, :levels])


def test_half_a_mark_hears_nothing() -> None:
    assert said_in([said("assistant", "<-Ins-> draw a star")]) == Said(None, "<-Ins-> draw a star", ())


def test_a_request_that_names_no_thing_changes_the_last_one() -> None:
    def turn(role: str, text: str) -> Turn:
        return Turn(role, (said(role, text),))

    history = [
        turn(USER, "Draw a red circle on a black background."),
        turn("assistant", "Here."),
        turn(USER, "Draw a star at the top."),
        turn("assistant", "Here."),
        turn(USER, "Now make it blue."),
    ]
    assert named_attributes(history) == {"shape", "position", "colour"}
    assert named_attributes([turn(USER, ".")], "draw a red star") == {"shape", "colour"}
