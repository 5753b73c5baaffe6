"""Held-out dialogues: at every turn of the assistant, does it answer in the right modality, and rightly?

Two ways. *Turn by turn*, the history is the true one, so each turn is judged by itself. *On its own*, the history is what
the model itself said before, kept as the ids it chose: an early mistake costs what it would cost in a chat.

Kinds of turns: ``draw`` (a picture was asked for), ``look`` (asked about a picture), ``play`` and ``listen`` (the same with
music), ``voice`` (the request was spoken), ``talk`` (none of these). What is right is in :mod:`evaluation.rightness`.

Figures: ``dialogue_modality``, ``dialogue_content``, ``dialogue_<kind>_modality``, ``dialogue_<kind>_content``, for a
``voice`` each part as well (``dialogue_voice_heard``, ...); ``dialogue_alone_modality``, ``dialogue_alone_content`` and
``dialogue_alone_whole`` (dialogues whose every turn is right) over dialogues of two and more rounds, on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from evaluation.answers import Said, said_by_ids, said_in
from evaluation.heldout import Bubble, Conversation, Examiner, TaskResult
from evaluation.rightness import Marks, TurnJudge
from inference.chat_grammar import SpokenTurnGrammar
from inference.chat_history import ChatForm, Exchange
from inference.generation import Request, generate
from inference.grammar import LengthBudget, TurnGrammar
from inference.sampling import SamplingConfig
from pipeline.dialogues import ASSISTANT, REPLY_MARKS, Turn, chat_prompt_pieces, turns_of
from pipeline.pieces import write_token_ids
from shards.records import TokenizedSample
from shards.vocabulary import Modality, TokenIds

_ROOM = 256  # ids of text after which the turn ends
KINDS = ("draw", "look", "play", "listen", "voice", "talk")


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn of the assistant: which dialogue, what came before, and the true answer."""

    sample_id: str
    number: int  # of the round, from 0
    history: tuple[Turn, ...]
    truth: Turn

    @property
    def is_spoken(self) -> bool:
        """Whether a voice asked."""
        return any(segment.modality == Modality.SPEECH for segment in self.history[-1].segments)

    @property
    def kind(self) -> str:
        """What was asked for: one of ``KINDS``."""
        if self.is_spoken:
            return "voice"
        answered = said_in(self.truth.segments).modalities[0]
        if answered != Modality.TEXT:
            return {Modality.IMAGE: "draw", Modality.MUSIC: "play"}.get(answered, "talk")
        shown = [s.modality for turn in reversed(self.history) for s in reversed(turn.segments) if s.codes is not None]
        about = next((modality for modality in shown if modality in (Modality.IMAGE, Modality.MUSIC)), None)
        return {Modality.IMAGE: "look", Modality.MUSIC: "listen", None: "talk"}[about]


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the model's answer and what is right about it."""

    asked: Asked
    said: Said
    marks: Marks


def examine_dialogues(examiner: Examiner, samples: Sequence[TokenizedSample]) -> TaskResult:
    """Answer every assistant turn of the dialogues, both ways, and judge the answers."""
    asked = [one for sample in samples for one in _asked_in(sample)]
    judge = TurnJudge(examiner, [said_in(one.truth.segments) for one in asked])
    desk = _Desk(examiner, asked)
    answers = desk.answer(asked, [desk.true_prompt(one) for one in asked])
    by_turn = _judged(examiner, judge, asked, answers)
    alone = _hold(examiner, judge, desk, asked)
    rounds = Counter(one.sample_id for one in asked)
    figures = figures_of(by_turn) | alone_figures([one for one in alone if rounds[one.asked.sample_id] > 1])
    return TaskResult("dialogue", "Dialogues", [], figures, [_conversation(held) for held in _by_dialogue(alone)])


def figures_of(answered: Sequence[Answered]) -> dict[str, float]:
    """Figures of answers that each stand for themselves; a kind that nobody asked for has none."""
    figures = _means("dialogue", answered)
    for kind in KINDS:
        chosen = [one for one in answered if one.asked.kind == kind]
        if chosen:
            figures |= _means(f"dialogue_{kind}", chosen)
    voiced = [one for one in answered if one.asked.kind == "voice"]
    for part in sorted({part for one in voiced for part in one.marks.parts}):
        scores = [one.marks.parts[part] for one in voiced if part in one.marks.parts]
        figures[f"dialogue_voice_{part}"] = float(np.mean(scores))
    return figures


def alone_figures(answered: Sequence[Answered]) -> dict[str, float]:
    """Figures of whole dialogues that the model held on its own; none if all have one round."""
    if not answered:
        return {}
    wrong = {one.asked.sample_id for one in answered if not one.marks.all_right}
    whole = 1 - len(wrong) / len({one.asked.sample_id for one in answered})
    return _means("dialogue_alone", answered) | {"dialogue_alone_whole": whole}


def _means(name: str, answered: Sequence[Answered]) -> dict[str, float]:
    figures = {f"{name}_modality": float(np.mean([one.marks.modality for one in answered])) if answered else 0.0}
    contents = [one.marks.content for one in answered if one.marks.content is not None]
    if contents:
        figures[f"{name}_content"] = float(np.mean(contents))
    return figures


class _Desk:
    """Where answers come from: the model, the form of its chats, and a grammar for its turns."""

    def __init__(self, examiner: Examiner, asked: Sequence[Asked]) -> None:
        loaded = examiner.loaded
        self.form = ChatForm(loaded.vocabulary, loaded.text_tokenizer, examiner.templates.preset)
        budgets = _budgets(asked)
        written = TurnGrammar(loaded.vocabulary, budgets, max_ids=_ROOM)
        has_marks = all(mark in loaded.vocabulary.markers for mark in REPLY_MARKS)
        spoken = SpokenTurnGrammar(loaded.vocabulary, budgets, max_ids=_ROOM) if has_marks else written
        self._grammars = {True: spoken, False: written}
        self._examiner = examiner
        # The first round of a dialogue is asked both ways, with the same prompt.
        self._given: dict[tuple[str, bytes], list[int]] = {}

    def true_prompt(self, asked: Asked) -> TokenIds:
        """The true dialogue up to and with a question."""
        examiner = self._examiner
        pieces = chat_prompt_pieces(asked.history, examiner.templates.preset)
        vocabulary, tokenizer = examiner.loaded.vocabulary, examiner.loaded.text_tokenizer
        return write_token_ids(pieces, vocabulary, tokenizer, complete=False).token_ids

    def answer(self, asked: Sequence[Asked], prompts: Sequence[TokenIds]) -> list[list[int]]:
        """The ids of an answer to each question."""
        keys = [f"dialogue/{one.sample_id}/{one.number}" for one in asked]
        known = [(key, prompt.tobytes()) for key, prompt in zip(keys, prompts, strict=True)]
        model, config = self._examiner.loaded.model, self._examiner.config
        sampling = config.sampling.get(Modality.IMAGE, SamplingConfig(temperature=0.0))
        for is_spoken, grammar in self._grammars.items():
            new = [n for n, one in enumerate(asked) if one.is_spoken == is_spoken and known[n] not in self._given]
            requests = [Request(keys[nth], prompts[nth]) for nth in new]
            ids = generate(model, requests, grammar, sampling, seed=config.seed)
            self._given |= dict(zip((known[nth] for nth in new), ids, strict=True))
        return [self._given[one] for one in known]


def _hold(examiner: Examiner, judge: TurnJudge, desk: _Desk, asked: Sequence[Asked]) -> list[Answered]:
    """All dialogues at once, round by round; what the model said is what it remembers."""
    remembered: dict[str, list[Exchange]] = {one.sample_id: [] for one in asked}
    answered: list[Answered] = []
    for number in range(1 + max((one.number for one in asked), default=-1)):
        now = [one for one in asked if one.number == number]
        questions = [desk.form.ask(one.history[-1]) for one in now]
        prompts = [desk.form.prompt(remembered[one.sample_id], ids) for one, ids in zip(now, questions, strict=True)]
        answers = desk.answer(now, prompts)
        for one, question, ids in zip(now, questions, answers, strict=True):
            remembered[one.sample_id].append(Exchange(question, desk.form.close(ids)))
        answered += _judged(examiner, judge, now, answers)
    return answered


def _judged(
    examiner: Examiner, judge: TurnJudge, asked: Sequence[Asked], answers: Sequence[Sequence[int]]
) -> list[Answered]:
    loaded = examiner.loaded
    said = [said_by_ids(ids, loaded.vocabulary, loaded.text_tokenizer) for ids in answers]
    marks = judge.judge([one.history for one in asked], [said_in(one.truth.segments) for one in asked], said)
    return [Answered(*each) for each in zip(asked, said, marks, strict=True)]


def _by_dialogue(answered: Sequence[Answered]) -> list[list[Answered]]:
    """The rounds of each dialogue in their order."""
    ordered = sorted(answered, key=lambda one: (one.asked.sample_id, one.asked.number))
    return [list(group) for _, group in groupby(ordered, key=lambda one: one.asked.sample_id)]


def _conversation(rounds: Sequence[Answered]) -> Conversation:
    bubbles: list[Bubble] = []
    for one in rounds:
        question, truth = said_in(one.asked.history[-1].segments), said_in(one.asked.truth.segments)
        bubbles.append(Bubble("user", question.text, question.media))
        bubbles.append(Bubble("answer", _shown_words(one.said), one.said.media, one.marks.by_name))
        bubbles.append(Bubble("truth", _shown_words(truth), truth.media))
    return Conversation(rounds[0].asked.sample_id, bubbles)


def _shown_words(said: Said) -> str:
    return said.text if said.heard is None else f"(heard: {said.heard}) {said.text}"


def _asked_in(sample: TokenizedSample) -> list[Asked]:
    turns = turns_of(sample)
    return [
        Asked(sample.sample_id, number // 2, tuple(turns[:number]), turn)
        for number, turn in enumerate(turns)
        if turn.role == ASSISTANT
    ]


def _budgets(asked: Sequence[Asked]) -> dict[Modality, LengthBudget]:
    """Sounds may last as long as the longest true one."""
    budgets = {Modality.IMAGE: LengthBudget(32, 32)}
    segments = [segment for one in asked for turn in (*one.history, one.truth) for segment in turn.segments]
    for modality in (Modality.SPEECH, Modality.MUSIC):
        frames = [len(s.codes) for s in segments if s.codes is not None and s.modality == modality]
        budgets[modality] = LengthBudget(5, max(frames, default=100))
    return budgets
