"""Held-out generations: the trained model draws, describes, speaks, listens and plays what it has never met.

Tasks, each on sample shards of corpora kept apart:

    caption -> picture      judged by the nearest prototype (colour, shape, background, position)
    picture -> caption      the attribute words it names
    text -> speech -> text  its own speech, heard by itself: words right (1 - word error rate)
    speech -> text          true speech: words right
    text -> music           judged by the nearest prototype (instrument, key, tempo, pattern)
    music -> caption        the attribute words it names
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.heldout_config import HeldoutConfig, TaskConfig
from evaluation.judges import MusicJudge, PictureJudge, share_right, words_right
from inference.generation import Request, generate
from inference.grammar import AnswerGrammar, LengthBudget
from inference.model import LoadedModel
from inference.sampling import SamplingConfig
from pipeline.pieces import MarkerPiece, Piece, TextPiece, write_token_ids
from pipeline.rendering import prompt_pieces
from pipeline.sample_corpora import music, pictures
from pipeline.templates import Templates, draw_fractions
from pipeline.tokenizers.base import MediaDetokenizer
from shards.records import Segment, TokenizedSample
from shards.sample_reader import read_samples
from shards.vocabulary import Codes, Modality

SPEECH_SLACK = 1.5  # generated speech may last this much longer than the truth


@dataclass(frozen=True, slots=True)
class Generation:
    """One held-out item: what was asked, what the truth is, and what came back.

    Attributes:
        media: name -> (modality, codes) of what there is to see or hear: ``truth``, ``answer``.
        texts: name -> text: ``prompt``, ``truth``, ``answer``, ``heard``.
        right: attribute -> whether it is right (only for judged attributes).
    """

    sample_id: str
    texts: Mapping[str, str]
    media: Mapping[str, tuple[Modality, Codes]]
    right: Mapping[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True, slots=True)
class Bubble:
    """One turn of a conversation as it is shown; ``who`` is ``user``, ``answer`` or ``truth``."""

    who: str
    text: str
    media: Sequence[tuple[Modality, Codes]]
    right: Mapping[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True, slots=True)
class Conversation:
    """A held-out dialogue: question, answer and true answer, round by round."""

    sample_id: str
    bubbles: Sequence[Bubble]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """All generations of one task, or its conversations, and its figures (fractions from 0 to 1)."""

    name: str
    title: str
    generations: Sequence[Generation]
    figures: Mapping[str, float]
    conversations: Sequence[Conversation] = ()


class Examiner:
    """Puts the questions: one object holds the model, the templates and the codecs."""

    def __init__(
        self,
        loaded: LoadedModel,
        templates: Templates,
        detokenizers: Mapping[Modality, MediaDetokenizer],
        config: HeldoutConfig,
    ) -> None:
        self.loaded, self.templates, self.detokenizers, self.config = loaded, templates, detokenizers, config

    def ask(
        self, direction: str, items: Sequence[TokenizedSample], *, media: Sequence[Codes] | None = None, frames: int = 0
    ) -> list[Any]:
        """One answer per item: a string, or codes.

        Args:
            media: asked about instead of the samples' own (the model's own speech, say).
            frames: longest answer of a sound, in frames.
        """
        wanted = Modality.TEXT if direction.endswith("_to_text") else Modality(direction.removeprefix("text_to_"))
        budget = (
            LengthBudget(1, self.config.text_budget)
            if wanted == Modality.TEXT
            else LengthBudget(min(frames, 5), frames)
        )
        grammar = AnswerGrammar(self.loaded.vocabulary, wanted, budget)
        sampling = self.config.sampling.get(wanted, SamplingConfig(temperature=0.0))
        requests = [
            self._request(direction, wanted, item, media[index] if media else None) for index, item in enumerate(items)
        ]
        answers = generate(self.loaded.model, requests, grammar, sampling, seed=self.config.seed)
        if wanted == Modality.TEXT:
            return [self.loaded.text_tokenizer.decode(ids).strip() for ids in answers]
        block = self.loaded.vocabulary.block(wanted)
        return [block.to_codes(np.array(ids, np.int64)) for ids in answers]

    def decode(self, modality: Modality, codes: Sequence[Codes]) -> list[Any]:
        """What answers look or sound like."""
        return list(self.detokenizers[modality].decode(codes))

    def _request(self, direction: str, wanted: Modality, item: TokenizedSample, medium: Codes | None) -> Request:
        pool = self.templates.pool(direction)
        instruction = pool[int(draw_fractions(item.sample_id, draw=0, seed=self.config.seed, count=1)[0] * len(pool))]
        segment = _medium(item)
        if medium is not None:
            segment = Segment(segment.slot, segment.modality, codes=medium)
        pieces: list[Piece] = prompt_pieces(direction, instruction=instruction, text=_text(item), medium=segment)
        if wanted != Modality.TEXT:
            pieces += [TextPiece(" "), MarkerPiece(self.loaded.vocabulary.block(wanted).start)]
        written = write_token_ids(pieces, self.loaded.vocabulary, self.loaded.text_tokenizer, complete=False)
        return Request(f"{direction}/{item.sample_id}", written.token_ids)


def examine_media(examiner: Examiner) -> list[TaskResult]:
    """Run every task between text and a medium whose held-out samples the config names."""
    config = examiner.config
    results: list[TaskResult] = []
    if config.image:
        images = held_out(config.image)
        results.append(_draw(examiner, images))
        results.append(_describe(examiner, images, "image", pictures.parse_caption, "Picture to caption"))
    if config.speech:
        speech = held_out(config.speech)
        results += [_speak_and_listen(examiner, speech), _listen(examiner, speech)]
    if config.music:
        clips = held_out(config.music)
        results.append(_play(examiner, clips))
        results.append(_describe(examiner, clips, "music", music.parse_caption, "Music to caption"))
    return results


def held_out(task: TaskConfig) -> list[TokenizedSample]:
    """The first samples of a held-out dataset, as many as are asked."""
    return list(itertools.islice(read_samples(task.dataset), task.limit))


def _draw(examiner: Examiner, items: Sequence[TokenizedSample]) -> TaskResult:
    answers = examiner.ask("text_to_image", items)
    found = PictureJudge().judge(examiner.decode(Modality.IMAGE, answers))
    wanted = [pictures.parse_caption(_text(item)) for item in items]
    return _judged("text_to_image", "Caption to picture", items, answers, found, wanted)


def _play(examiner: Examiner, items: Sequence[TokenizedSample]) -> TaskResult:
    frames = max((len(_codes(item)) for item in items), default=0)
    answers = examiner.ask("text_to_music", items, frames=frames)
    rate = examiner.detokenizers[Modality.MUSIC].sample_rate_hz
    waves = examiner.decode(Modality.MUSIC, answers)
    duration_s = max((item.segments[-1].duration_s or _medium(item).duration_s or 0.0 for item in items), default=0.0)
    assert rate == music.SAMPLE_RATE_HZ
    found = MusicJudge(duration_s).judge(waves) if waves else []
    wanted = [music.parse_caption(_text(item)) for item in items]
    return _judged("text_to_music", "Text to music", items, answers, found, wanted)


def _judged(
    name: str,
    title: str,
    items: Sequence[TokenizedSample],
    answers: Sequence[Codes],
    found: Sequence[dict[str, str]],
    wanted: Sequence[dict[str, str]],
) -> TaskResult:
    attributes = sorted({attribute for one in wanted for attribute in one})
    generations = [
        Generation(
            item.sample_id,
            {"prompt": _text(item), "judged as": ", ".join(seen[attribute] for attribute in attributes)},
            {"truth": (_medium(item).modality, _codes(item)), "answer": (_medium(item).modality, answer)},
            {attribute: seen[attribute] == truth[attribute] for attribute in attributes if attribute in truth},
        )
        for item, answer, seen, truth in zip(items, answers, found, wanted, strict=True)
    ]
    figures = {f"{name}_{attribute}": share_right(found, wanted, attribute) for attribute in attributes}
    return TaskResult(name, title, generations, figures)


def _describe(
    examiner: Examiner,
    items: Sequence[TokenizedSample],
    modality: str,
    parse: Callable[[str], dict[str, str]],
    title: str,
) -> TaskResult:
    name = f"{modality}_to_text"
    answers = examiner.ask(name, items)
    found, wanted = [parse(answer) for answer in answers], [parse(_text(item)) for item in items]
    generations = [
        Generation(
            item.sample_id,
            {"truth": _text(item), "answer": answer},
            {"truth": (_medium(item).modality, _codes(item))},
            {attribute: seen.get(attribute) == truth[attribute] for attribute in sorted(truth)},
        )
        for item, answer, seen, truth in zip(items, answers, found, wanted, strict=True)
    ]
    attributes = sorted({attribute for one in wanted for attribute in one})
    figures = {f"{name}_{attribute}": share_right(found, wanted, attribute) for attribute in attributes}
    figures[f"{name}_words"] = float(np.mean(list(figures.values()))) if figures else 0.0
    return TaskResult(name, title, generations, figures)


def _speak_and_listen(examiner: Examiner, items: Sequence[TokenizedSample]) -> TaskResult:
    frames = int(SPEECH_SLACK * max((len(_codes(item)) for item in items), default=1))
    spoken = examiner.ask("text_to_speech", items, frames=frames)
    heard = examiner.ask("speech_to_text", items, media=spoken)
    return _heard("text_to_speech_to_text", "Text to speech, heard again by the model", items, heard, spoken)


def _listen(examiner: Examiner, items: Sequence[TokenizedSample]) -> TaskResult:
    return _heard("speech_to_text", "Speech to text", items, examiner.ask("speech_to_text", items), None)


def _heard(
    name: str, title: str, items: Sequence[TokenizedSample], heard: Sequence[str], spoken: Sequence[Codes] | None
) -> TaskResult:
    generations = [
        Generation(
            item.sample_id,
            {"truth": _text(item), "answer": text},
            {"truth": (Modality.SPEECH, _codes(item))} | ({"answer": (Modality.SPEECH, spoken[i])} if spoken else {}),
        )
        for i, (item, text) in enumerate(zip(items, heard, strict=True))
    ]
    right = [words_right(text, _text(item)) for item, text in zip(items, heard, strict=True)]
    return TaskResult(name, title, generations, {f"{name}_words": float(np.mean(right)) if right else 0.0})


def _text(item: TokenizedSample) -> str:
    return next(segment.text for segment in item.segments if segment.text)


def _medium(item: TokenizedSample) -> Segment:
    return next(segment for segment in item.segments if segment.codes is not None)


def _codes(item: TokenizedSample) -> Codes:
    codes = _medium(item).codes
    assert codes is not None
    return codes
