"""What is said in a dialogue: one to three rounds, each a request and its answer, in our own wording.

Rounds: draw (the user describes a picture, the answer shows it), change (of the picture just drawn: another colour,
place or background), describe (the user shows a picture, the answer names it), play and listen (the same with music).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.items import as_sentence, music_caption, sentence_caption
from pipeline.sample_corpora.music import MusicAttributes
from pipeline.sample_corpora.pictures import BACKGROUNDS, COLOURS, PLACES, POSITIONS, PictureAttributes, with_article

IMAGE, MUSIC = "<image1>", "<music1>"
"""Placeholders; numbering starts again in each message, and ours never carry two of a kind."""

Shown = PictureAttributes | MusicAttributes

_SPOKEN_REQUEST = "Draw {a_colour} {shape} {place} on {background}."
_DRAW_REQUESTS = (
    _SPOKEN_REQUEST,
    "Please draw {a_colour} {shape} {place} of a {background} background.",
    "Can you make a {background} picture with {a_colour} {shape} {place}?",
    "I would like to see {a_colour} {shape} {place}, everything else {background}.",
    "Show me {a_colour} {shape} {place} on a {background} background.",
)
_DRAW_ANSWERS = ("Here it is.", "Sure, here is your {shape}.", "Of course.", "This is {a_colour} {shape} {place}.")
_CHANGES = {
    "colour": ("Now make it {colour}.", "The same in {colour}, please."),
    "position": ("Now put it {place}.", "Move it, I want it {place}."),
    "background": ("Now make the background {background}.", "The same on {background}, please."),
}
_CHANGE_ANSWERS = ("Here it is.", "Done.", "Sure, like this.")
_DESCRIBE_REQUESTS = ("What is in this picture?", "Describe this picture.", "What do you see here?")
_PLAY_REQUESTS = (
    "Play {a_pattern} on the {instrument} in {key} at a {tempo} tempo.",
    "I would like to hear {a_instrument} with {a_pattern} in {key}, {tempo} tempo.",
    "Can you make {tempo} music in {key}, {a_pattern} on the {instrument}?",
)
_PLAY_ANSWERS = ("Here is your music.", "Listen to this.", "Sure, here is the {instrument}.")
_LISTEN_REQUESTS = ("What do you hear?", "Describe this music.", "What is playing here?")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: words, what is shown or played with them, and its caption."""

    words: str
    shown: Shown | None = None
    caption: str = ""

    @property
    def text(self) -> str:
        """The words with the placeholder of what is shown."""
        if self.shown is None:
            return self.words
        return f"{self.words} {IMAGE if isinstance(self.shown, PictureAttributes) else MUSIC}"


@dataclass(frozen=True, slots=True)
class Round:
    """A request and its answer."""

    kind: str
    request: Message
    answer: Message


def draw_dialogue(rng: np.random.Generator, *, held_out: bool, is_spoken: bool) -> tuple[Round, ...]:
    """One to three rounds; a spoken dialogue opens with a short request for a picture."""
    num_rounds = int(rng.integers(1, 4))
    rounds = [_draw(rng, held_out, is_spoken=True)] if is_spoken else []
    while len(rounds) < num_rounds:
        previous = rounds[-1].answer.shown if rounds else None
        if isinstance(previous, PictureAttributes) and rng.random() < 0.4:
            rounds.append(_change(rng, previous))
        else:
            start = pick(rng, (_draw, _draw, _describe, _describe, _play, _listen))
            rounds.append(start(rng, held_out))
    return tuple(rounds)


def _draw(rng: np.random.Generator, held_out: bool, *, is_spoken: bool = False) -> Round:
    attributes = pick(rng, pictures.all_attributes(held_out=held_out))
    request = _SPOKEN_REQUEST if is_spoken else pick(rng, _DRAW_REQUESTS)
    answer = "Here it is." if is_spoken else pick(rng, _DRAW_ANSWERS)
    return Round("draw", Message(_fill(request, attributes)), _show(rng, _fill(answer, attributes), attributes))


def _change(rng: np.random.Generator, previous: PictureAttributes) -> Round:
    """Another colour, place or background for the picture just drawn, on the same side of the held-out line."""
    candidates = [
        (attribute, changed)
        for attribute, values in (("colour", COLOURS), ("position", POSITIONS), ("background", BACKGROUNDS))
        for changed in (dataclasses.replace(previous, **{attribute: value}) for value in values)
        if changed != previous and changed.held_out == previous.held_out
    ]
    attribute, changed = pick(rng, candidates)
    request = _fill(pick(rng, _CHANGES[attribute]), changed)
    return Round("change", Message(request), _show(rng, pick(rng, _CHANGE_ANSWERS), changed))


def _describe(rng: np.random.Generator, held_out: bool) -> Round:
    attributes = pick(rng, pictures.all_attributes(held_out=held_out))
    request = _show(rng, pick(rng, _DESCRIBE_REQUESTS), attributes)
    return Round("describe", request, Message(as_sentence(sentence_caption(rng, attributes))))


def _play(rng: np.random.Generator, held_out: bool) -> Round:
    attributes = pick(rng, music.all_attributes(held_out=held_out))
    answer = _show(rng, _fill(pick(rng, _PLAY_ANSWERS), attributes), attributes)
    return Round("play", Message(_fill(pick(rng, _PLAY_REQUESTS), attributes)), answer)


def _listen(rng: np.random.Generator, held_out: bool) -> Round:
    attributes = pick(rng, music.all_attributes(held_out=held_out))
    request = _show(rng, pick(rng, _LISTEN_REQUESTS), attributes)
    return Round("listen", request, Message(as_sentence(music_caption(rng, attributes))))


def _show(rng: np.random.Generator, words: str, shown: Shown) -> Message:
    """Words with a picture or a clip, and a caption for it."""
    if isinstance(shown, PictureAttributes):
        return Message(words, shown, sentence_caption(rng, shown))
    return Message(words, shown, music_caption(rng, shown))


def _fill(template: str, shown: Shown) -> str:
    """A wording with the words of what is shown: ``{colour}``, ``{a_colour}``, ``{place}``, ``{instrument}``, ..."""
    words = shown.as_dict()
    with_articles = {f"a_{name}": with_article(word) for name, word in words.items()}
    place = {"place": PLACES[words["position"]]} if "position" in words else {}
    return template.format(**words, **with_articles, **place)
