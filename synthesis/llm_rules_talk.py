"""How the offline writer builds a dialogue: rounds that are drawn one after the other, whatever their wording.

A manner of talking (:mod:`synthesis.llm_rules_dialogues`, :mod:`synthesis.llm_rules_brief`) is a set of rounds: functions
that write a line of the user and a line of the assistant. What is said of a picture or a piece of music is true of it, so
that a model that learns from the dialogues can be scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.music import MusicAttributes
from pipeline.sample_corpora.pictures import PLACES, PictureAttributes, with_article
from synthesis.config import Requirement

MOST_IMAGES, MOST_MUSIC = 2, 1
_THREE_ROUNDS_SHARE = 0.4
_THING_SHARE = 0.5

Shown = PictureAttributes | MusicAttributes
"""What a picture shows, or what a piece of music plays."""


@dataclass(slots=True)
class Talk:
    """A dialogue in the making.

    Attributes:
        thing: what it is about, in a word or two; may be empty.
        held_out: whether it shows and plays what is kept for evaluation, or what is not.
        last: shown or played most recently.
    """

    rng: np.random.Generator
    thing: str = ""
    held_out: bool = False
    lines: list[str] = field(default_factory=list[str])
    images: int = 0
    music: int = 0
    last: Shown | None = None
    is_drawn: bool = False  # whether the assistant showed it

    def say(self, speaker: str, wording: str, about: Shown, shown: Shown | None = None) -> None:
        """A line; ``shown`` is put at its end."""
        text = f"{speaker}: {_fill(wording, about, self.thing)}"
        self.lines.append(f"{text} {self._shown(shown)}" if shown is not None else text)
        if shown is not None:
            self.is_drawn = speaker != "User"

    def ask(
        self, wordings: tuple[str, ...], for_thing: tuple[str, ...], about: Shown, shown: Shown | None = None
    ) -> None:
        """A line of the user, which may say what it is for."""
        mentions = self.thing and for_thing and self.rng.random() < _THING_SHARE
        self.say("User", pick(self.rng, for_thing if mentions else wordings), about, shown)

    def picture(self) -> PictureAttributes:
        """Any picture of this side of the held-out line."""
        return pick(self.rng, pictures.all_attributes(held_out=self.held_out))

    def piece(self) -> MusicAttributes:
        """Any piece of music of this side of the held-out line."""
        return pick(self.rng, music.all_attributes(held_out=self.held_out))

    def changed(self) -> tuple[str, PictureAttributes]:
        """The last picture with another colour, place or background, on its side of the line, and which of them."""
        before = self.last
        assert isinstance(before, PictureAttributes)
        words = {"colour": pictures.COLOURS, "position": pictures.POSITIONS, "background": pictures.BACKGROUNDS}
        changes = [
            (name, changed)
            for name, values in words.items()
            for changed in (dataclasses.replace(before, **{name: value}) for value in values)
            if changed != before and changed.held_out == before.held_out
        ]
        return pick(self.rng, changes)

    def _shown(self, shown: Shown) -> str:
        self.last = shown
        if isinstance(shown, PictureAttributes):
            self.images += 1
            return f"[image: {pictures.describe(shown, int(self.rng.integers(len(pictures.SENTENCE_TEMPLATES))))}]"
        self.music += 1
        return f"[music: {music.describe(shown, int(self.rng.integers(len(music.TEMPLATES))))}]"


Round = Callable[[Talk], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """A way of talking.

    Attributes:
        wanted: rounds that meet each requirement, one of which is in every dialogue, by weight.
        costs: pictures and pieces of music that those rounds take.
        possible: what the next round may be, given how many pictures and pieces are left.
    """

    wanted: Mapping[Requirement, tuple[tuple[Round, float], ...]]
    costs: Mapping[Round, tuple[int, int]]
    possible: Callable[[Talk, int, int], list[Round]]


def hold(talk: Talk, requirement: Requirement, manner: Manner) -> str:
    """Two or three rounds that keep every rule and meet the requirement, a line a turn."""
    rounds = 3 if talk.rng.random() < _THREE_ROUNDS_SHARE else 2
    place = int(talk.rng.integers(rounds - 1))
    wanted = _chosen(talk.rng, manner.wanted[requirement])
    images, pieces = manner.costs[wanted]
    for number in range(rounds):
        if number == place:
            wanted(talk)
            images = pieces = 0
        else:
            left = MOST_IMAGES - images - talk.images, MOST_MUSIC - pieces - talk.music
            pick(talk.rng, manner.possible(talk, *left))(talk)
    return "\n".join(talk.lines)


def _chosen(rng: np.random.Generator, weighted: tuple[tuple[Round, float], ...]) -> Round:
    """One of them by weight; the last takes what is left of 1."""
    point = rng.random()
    for one, weight in weighted[:-1]:
        if point < weight:
            return one
        point -= weight
    return weighted[-1][0]


def _fill(wording: str, about: Shown, thing: str) -> str:
    words = about.as_dict()
    with_articles = {f"a_{name}": with_article(word) for name, word in words.items()}
    place = {"place": PLACES[words["position"]]} if "position" in words else {}
    return wording.format(**words, **with_articles, **place, thing=thing)
