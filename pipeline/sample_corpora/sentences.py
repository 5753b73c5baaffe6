"""The small grammar of what is spoken: about 45 words, three to seven of them a sentence.

A sentence is held out when it names a held-out (shape, colour) pair, or, for one sentence in ten, by a hash of its
words; both depend on the words alone, so a sentence is on the same side whatever the configured counts are.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from pipeline.sample_corpora.draws import stable_int
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
_FILLINGS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "shapes": tuple(PLURALS.values()),
    "colour": COLOURS,
    "a_colour": tuple(with_article(colour) for colour in COLOURS),
    "number": NUMBERS,
    "place": SPOKEN_PLACES,
    "a_tempo": tuple(with_article(tempo) for tempo in SPOKEN_TEMPI),
    "instrument": INSTRUMENTS,
}
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


@functools.cache
def all_sentences(*, held_out: bool | None = None) -> tuple[Sentence, ...]:
    """Every sentence of the grammar once, in a fixed order; all of them, or only those that are (not) held out."""
    questions = frozenset(words for template in _QUESTIONS for words in _fill(template))
    words = dict.fromkeys(words for template in _STATEMENTS + _QUESTIONS for words in _fill(template))
    sentences = (Sentence(one, is_question=one in questions) for one in words)
    return tuple(one for one in sentences if held_out is None or one.held_out == held_out)


def names_held_out_pair(text: str) -> bool:
    """Whether a text that speaks of one thing names a (shape, colour) pair kept for evaluation."""
    named = parse_caption(text)
    return (named.get("shape"), named.get("colour")) in HELD_OUT_PAIRS


def _fill(template: str) -> Iterator[str]:
    """The template with every combination of the words it asks for."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    for words in product(*(_FILLINGS[name] for name in names)):
        yield template.format(**dict(zip(names, words, strict=True)))
