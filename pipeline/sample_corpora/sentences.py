"""The small grammar of what is spoken: about 45 words, three to seven of them a sentence.

A sentence is held out when it names a held-out (shape, colour) pair, or, for one sentence in ten, by a hash of its
words; both depend on the words alone, so a sentence is on the same side whatever the configured counts are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.sample_corpora.draws import pick, stable_int
from pipeline.sample_corpora.music import INSTRUMENTS
from pipeline.sample_corpora.pictures import COLOURS, HELD_OUT_PAIRS, PLURALS, SHAPES, parse_caption, with_article

NUMBERS = ("two", "three", "four")
SPOKEN_PLACES = ("on the left", "on the right", "on top", "at the bottom", "in the center")
SPOKEN_TEMPI = ("slow", "fast")

_STATEMENTS = (
    "draw {a_colour} {shape}",
    "please draw {a_colour} {shape}",
    "show me {a_colour} {shape}",
    "show me the {colour} {shape}",
    "there is {a_colour} {shape}",
    "the {shape} is {colour}",
    "{number} {colour} {shapes}",
    "draw {number} {colour} {shapes}",
    "show me {number} {colour} {shapes}",
    "put the {colour} {shape} on top",
    "the {colour} {shape} is {place}",
    "put the {shape} {place}",
    "please play {a_tempo} song",
    "play {a_tempo} song",
    "play {a_tempo} {instrument} song",
)
_QUESTIONS = ("is the {shape} {colour}", "is the {colour} {shape} {place}", "is there {a_colour} {shape}")
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is said: lower case words without punctuation, and whether it is asked."""

    words: str
    is_question: bool

    @property
    def written(self) -> str:
        """As Common Voice writes it: ``Put the red star on top.``"""
        return self.words[0].upper() + self.words[1:] + ("?" if self.is_question else ".")

    @property
    def tagged(self) -> str:
        """As GigaSpeech writes it: ``PUT THE RED STAR ON TOP <PERIOD>``."""
        return self.words.upper() + (" <QUESTIONMARK>" if self.is_question else " <PERIOD>")

    @property
    def held_out(self) -> bool:
        """Whether no training item may say this."""
        return names_held_out_pair(self.words) or stable_int("sentence", self.words) % _HELD_OUT_ONE_IN == 0


def draw_sentence(rng: np.random.Generator, *, held_out: bool = False) -> Sentence:
    """One sentence of the training side, or of the held-out side."""
    while True:
        sentence = _any_sentence(rng)
        if sentence.held_out == held_out:
            return sentence


def names_held_out_pair(text: str) -> bool:
    """Whether a text that speaks of one thing names a (shape, colour) pair kept for evaluation."""
    named = parse_caption(text)
    return (named.get("shape"), named.get("colour")) in HELD_OUT_PAIRS


def _any_sentence(rng: np.random.Generator) -> Sentence:
    template = pick(rng, _STATEMENTS + _QUESTIONS)
    shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
    tempo = pick(rng, SPOKEN_TEMPI)
    words = template.format(
        shape=shape,
        shapes=PLURALS[shape],
        colour=colour,
        a_colour=with_article(colour),
        number=pick(rng, NUMBERS),
        place=pick(rng, SPOKEN_PLACES),
        tempo=tempo,
        a_tempo=with_article(tempo),
        instrument=pick(rng, INSTRUMENTS),
    )
    return Sentence(words, is_question=template in _QUESTIONS)
