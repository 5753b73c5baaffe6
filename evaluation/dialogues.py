"""Held-out dialogues: at every turn of the assistant, does it answer in the right modality, and rightly?

The history is the true one, so each turn is judged by itself. What an answer should show is read off the true answer:
the judge looks at both pictures, listens to both clips, or reads both texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.heldout import Examiner, Generation, TaskResult
from evaluation.judges import MusicJudge, PictureJudge
from inference.generation import Request, generate
from inference.grammar import LengthBudget, TurnGrammar
from inference.sampling import SamplingConfig
from pipeline.dialogues import ASSISTANT, Turn, chat_prompt_pieces, turns_of
from pipeline.pieces import write_token_ids
from pipeline.sample_corpora import music, pictures
from shards.records import Segment, TokenizedSample
from shards.vocabulary import Codes, Modality

_TEXT_ROOM = 64  # ids of text an answer may have


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn of the assistant: what came before, and the true answer."""

    key: str
    history: tuple[Turn, ...]
    truth: Turn


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, taken apart."""

    text: str
    media: tuple[tuple[Modality, Codes], ...]

    @property
    def modality(self) -> Modality:
        """What it answers in: the first medium's modality, else text."""
        return self.media[0][0] if self.media else Modality.TEXT


def examine_dialogues(examiner: Examiner, samples: Sequence[TokenizedSample]) -> TaskResult:
    """Answer every assistant turn of the dialogues and judge the answers."""
    asked = [one for sample in samples for one in _turns(sample)]
    answers = _answer(examiner, asked)
    truths = [_said_in(turn.truth.segments) for turn in asked]
    right = [one.modality == truth.modality for one, truth in zip(answers, truths, strict=True)]
    wanted, found = _seen(examiner, truths), _seen(examiner, answers)
    content = [
        {attribute: found[i].get(attribute) == value for attribute, value in wanted[i].items()} if right[i] else {}
        for i in range(len(asked))
    ]
    figures = {"dialogue_modality": float(np.mean(right)) if right else 0.0}
    for modality in Modality:
        chosen = [i for i, truth in enumerate(truths) if truth.modality == modality and wanted[i]]
        if chosen:
            scores = [np.mean([content[i].get(attribute, False) for attribute in wanted[i]]) for i in chosen]
            figures[f"dialogue_{modality}_content"] = float(np.mean(scores))
    generations = [
        _generation(turn, answers[i], truths[i], {"modality": right[i], **content[i]}) for i, turn in enumerate(asked)
    ]
    return TaskResult("dialogue", "Dialogues", generations, figures)


def _turns(sample: TokenizedSample) -> list[Asked]:
    turns = turns_of(sample)
    return [
        Asked(f"dialogue/{sample.sample_id}/{number}", tuple(turns[:number]), turn)
        for number, turn in enumerate(turns)
        if turn.role == ASSISTANT
    ]


def _answer(examiner: Examiner, asked: Sequence[Asked]) -> list[Said]:
    loaded, preset = examiner.loaded, examiner.templates.preset
    requests = []
    for one in asked:
        pieces = chat_prompt_pieces(one.history, preset)
        ids = write_token_ids(pieces, loaded.vocabulary, loaded.text_tokenizer, complete=False).token_ids
        requests.append(Request(one.key, ids))
    budgets = _budgets(asked)
    grammar = TurnGrammar(loaded.vocabulary, budgets, max_ids=_TEXT_ROOM)
    sampling = examiner.config.sampling.get(Modality.IMAGE, SamplingConfig(temperature=0.0))
    answers = generate(loaded.model, requests, grammar, sampling, seed=examiner.config.seed)
    return [_take_apart(ids, examiner) for ids in answers]


def _budgets(asked: Sequence[Asked]) -> dict[Modality, LengthBudget]:
    """Sounds may last as long as the longest true one."""
    budgets = {Modality.IMAGE: LengthBudget(32, 32)}
    segments = [segment for one in asked for turn in (*one.history, one.truth) for segment in turn.segments]
    for modality in (Modality.SPEECH, Modality.MUSIC):
        frames = [len(s.codes) for s in segments if s.codes is not None and s.modality == modality]
        budgets[modality] = LengthBudget(5, max(frames, default=100))
    return budgets


def _take_apart(ids: Sequence[int], examiner: Examiner) -> Said:
    vocabulary = examiner.loaded.vocabulary
    names, index = vocabulary.modality_names(), vocabulary.modality_index()
    words: list[int] = []
    media: list[tuple[Modality, Codes]] = []
    position = 0
    while position < len(ids):
        name = names[index[ids[position]]]
        if name == "text":
            words.append(ids[position])
            position += 1
            continue
        block = vocabulary.block(name)
        stop = list(ids).index(block.end_id, position)
        media.append((Modality(name), block.to_codes(np.array(ids[position + 1 : stop], np.int64))))
        position = stop + 1
    text = examiner.loaded.text_tokenizer.decode([token_id for token_id in words if token_id < vocabulary.text_size])
    return Said(text.strip(), tuple(media))


def _said_in(segments: Sequence[Segment]) -> Said:
    media = tuple((segment.modality, segment.codes) for segment in segments if segment.codes is not None)
    return Said(" ".join(segment.text for segment in segments if segment.text).strip(), media)


def _seen(examiner: Examiner, answers: Sequence[Said]) -> list[dict[str, str]]:
    """Attributes of each answer's first medium, or of its words."""
    seen: list[dict[str, str]] = [{} for _ in answers]
    clips = [len(codes) for one in answers for modality, codes in one.media[:1] if modality == Modality.MUSIC]
    frame_s = 0.02
    judges: Mapping[Modality, Callable[[Sequence[Any]], list[dict[str, str]]]] = {
        Modality.IMAGE: PictureJudge().judge,
        Modality.MUSIC: MusicJudge(max(clips) * frame_s).judge if clips else lambda _: [],
    }
    for modality, judge in judges.items():
        chosen = [i for i, one in enumerate(answers) if one.modality == modality]
        if chosen:
            judged = judge(examiner.decode(modality, [answers[i].media[0][1] for i in chosen]))
            for i, attributes in zip(chosen, judged, strict=True):
                seen[i] = attributes
    for i, one in enumerate(answers):
        if one.modality == Modality.TEXT:
            seen[i] = pictures.parse_caption(one.text) | music.parse_caption(one.text)
    return seen


def _generation(turn: Asked, said: Said, truth: Said, right: Mapping[str, bool]) -> Generation:
    prompt = " ".join(segment.text for segment in turn.history[-1].segments if segment.text)
    media = {f"truth {n}": one for n, one in enumerate(truth.media, start=1)}
    media |= {f"answer {n}": one for n, one in enumerate(said.media, start=1)}
    shown = [(s.modality, s.codes) for s in turn.history[-1].segments if s.codes is not None]
    media |= {f"shown {n}": one for n, one in enumerate(shown, start=1)}
    return Generation(turn.key, {"prompt": prompt, "truth": truth.text, "answer": said.text}, media, right)
