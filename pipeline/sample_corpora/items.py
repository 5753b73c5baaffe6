"""What one item shows, says or plays: the draws all layouts share.

An item is a function of (seed, corpus, split, index), so that ``--limit`` takes the first items of the full set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.sample_corpora import music, pictures, speech
from pipeline.sample_corpora.config import SampleCorporaConfig, Split
from pipeline.sample_corpora.draws import balanced, generator, pick
from pipeline.sample_corpora.encoders import Sound, jpeg_bytes
from pipeline.sample_corpora.pictures import PictureAttributes
from pipeline.sample_corpora.sentences import Sentence, all_sentences


@dataclass(frozen=True, slots=True)
class Task:
    """One corpus to write: its folder, its side, how many items, and the config of the whole set."""

    corpus: str
    split: Split
    count: int
    folder: Path
    config: SampleCorporaConfig

    def rng(self, *key: object) -> np.random.Generator:
        """The generator of this corpus, side and key."""
        return generator(self.config.seed, self.corpus, self.split, *key)

    @property
    def held_out(self) -> bool:
        """Whether the items are kept apart for evaluation."""
        return self.split is Split.HELDOUT


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One line of ``attributes.jsonl``: the truth about one picture or sound.

    Attributes:
        path: the file it is in, relative to the corpus folder.
        key: what names it in that file or in the corpus's own metadata.
        modality: ``image``, ``speech`` or ``music``.
        text: the caption or the words that go with it.
    """

    path: str
    key: str
    modality: str
    text: str
    attributes: Mapping[str, str]


def picture_attributes(task: Task, index: int) -> PictureAttributes:
    """The composition of the ``index``-th picture: every composition of its side comes equally often."""
    if not task.held_out:
        return balanced(pictures.all_attributes(held_out=False), index, task.config.seed, task.corpus)
    nth, pair = divmod(index, len(pictures.HELD_OUT_PAIRS))
    shape, colour = pictures.HELD_OUT_PAIRS[pair]
    scenes = tuple(one for one in pictures.all_attributes(held_out=True) if (one.shape, one.colour) == (shape, colour))
    return balanced(scenes, nth, task.config.seed, task.corpus, shape)


def picture_bytes(task: Task, attributes: PictureAttributes, *key: object) -> bytes:
    """A JPEG of these attributes with the variation that belongs to the key."""
    wanted = task.config.pictures
    variation = pictures.draw_variation(
        task.rng("variation", *key),
        jitter_px=wanted.jitter_px,
        jitter_scale=wanted.jitter_scale,
        jitter_shade=wanted.jitter_shade,
    )
    return jpeg_bytes(pictures.render_picture(attributes, variation), wanted.jpeg_quality)


def sentence_caption(rng: np.random.Generator, attributes: PictureAttributes) -> str:
    """A descriptive caption, a full sentence or nearly one."""
    return pictures.describe(attributes, int(rng.integers(len(pictures.SENTENCE_TEMPLATES))))


def alt_text(rng: np.random.Generator, attributes: PictureAttributes) -> str:
    """A caption as web pages have it: a few words."""
    first = len(pictures.SENTENCE_TEMPLATES)
    return pictures.describe(attributes, int(rng.integers(first, len(pictures.TEMPLATES))))


def music_attributes(task: Task, index: int) -> music.MusicAttributes:
    """The piece of the ``index``-th clip: every piece of its side comes equally often."""
    return balanced(music.all_attributes(held_out=task.held_out), index, task.config.seed, task.corpus)


def music_sound(task: Task, attributes: music.MusicAttributes, *key: object, duration_s: float) -> Sound:
    """A clip of these attributes, as loud as the key says."""
    jitter_db = task.config.music.jitter_gain_db
    gain_db = float(task.rng("gain", *key).uniform(-jitter_db, jitter_db))
    return music.render_music(attributes, duration_s=duration_s, gain_db=gain_db)


def music_caption(rng: np.random.Generator, attributes: music.MusicAttributes) -> str:
    """One of the wordings for a piece."""
    return music.describe(attributes, int(rng.integers(len(music.TEMPLATES))))


def spoken_item(task: Task, index: int) -> tuple[Sentence, speech.Voice]:
    """The ``index``-th sentence, each of its side equally often, and who says it: the voices take turns."""
    voices = task.config.speech.voices
    sentence = balanced(all_sentences(held_out=task.held_out), index, task.config.seed, task.corpus)
    return sentence, speech.voice_by_name(voices[index % len(voices)])


def say(sentence: Sentence, voice: speech.Voice, *, sample_rate_hz: int = speech.SAMPLE_RATE_HZ) -> Sound:
    """The sentence as sound, a question with the melody of one."""
    return speech.synthesize(sentence.written, voice, sample_rate_hz=sample_rate_hz)


def speech_record(path: str, key: str, sentence: Sentence, voice: speech.Voice) -> ItemRecord:
    """The record of one spoken sentence."""
    return ItemRecord(path, key, "speech", sentence.words, {"voice": voice.name})


def as_sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def themed_attributes(task: Task, rng: np.random.Generator, count: int) -> tuple[str, tuple[PictureAttributes, ...]]:
    """``count`` different compositions that share a shape, a colour or a background, and the word they share."""
    compositions = pictures.all_attributes(held_out=task.held_out)
    theme = pick(rng, ("shape", "colour", "background"))
    word = pick(rng, compositions).as_dict()[theme]
    sharing = [one for one in compositions if one.as_dict()[theme] == word]
    return word, tuple(sharing[int(place)] for place in rng.choice(len(sharing), count, replace=False))
