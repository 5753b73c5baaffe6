"""Brief dialogues for a small model: a request names what matters in it, one to four words of the world.

Rounds: draw, change (of the picture just drawn), ask (one thing about a picture shown or just drawn), describe, play,
listen. What a request for a picture leaves open is in the center, on white; what one for music leaves open (tempo, key
and pattern) is any. An answer about music names what a request for it names: the instrument. Answers to different
questions begin with different words, or a small model ends the one where it would end the other.

A spoken round asks for a coloured shape, and the voice that answers names the shape.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.dialogues import Message, Round, change_round, fill, show
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.pictures import PictureAttributes

_OPEN_PLACE, _OPEN_BACKGROUND = "center", "white"
_SPOKEN_REQUESTS = ("Draw {a_colour} {shape}.", "Show me {a_colour} {shape}.", "Please draw {a_colour} {shape}.")
_SPOKEN_ANSWER = "Here is your {shape}."
_DRAW_REQUESTS = ("Draw {a_colour} {shape}", "Show me {a_colour} {shape}", "I would like {a_colour} {shape}")
_PLACE, _BACKGROUND = " {place}", " on a {background} background"
_DRAW_ANSWERS = ("Here it is.", "Sure, here is your {shape}.", "This is {a_colour} {shape}.")
_QUESTIONS = {
    "colour": ("What colour is it?", "Which colour does it have?"),
    "shape": ("What shape is it?", "Which shape is this?"),
    "position": ("Where is it?", "In which place is it?"),
    "background": ("What is behind it?", "Which background does it have?"),
}
_ANSWERS = {
    "colour": "It is {colour}.",
    "shape": "It is a {shape}.",
    "position": "It is {place}.",
    "background": "Behind it everything is {background}.",
}
_DESCRIBE_REQUESTS = ("Describe this picture.", "Tell me about this picture.")
_DESCRIPTION = "This picture shows {a_colour} {shape} {place} on {background}."
_PLAY_REQUESTS = ("Play music on the {instrument}.", "I would like to hear {a_instrument}.")
_PLAY_ANSWERS = ("Here is your music.", "Listen to the {instrument}.")
_LISTEN_REQUESTS = ("What do you hear?", "Describe this music.")
_LISTEN_ANSWER = "You hear {a_instrument}."


def draw_brief_dialogue(rng: np.random.Generator, *, held_out: bool, is_spoken: bool) -> tuple[Round, ...]:
    """One to three rounds; a spoken dialogue opens with a spoken request for a picture."""
    num_rounds = int(rng.integers(1, 4))
    rounds = [_speak(rng, held_out)] if is_spoken else []
    while len(rounds) < num_rounds:
        shown = rounds[-1].answer.shown or rounds[-1].request.shown if rounds else None
        if isinstance(shown, PictureAttributes) and rng.random() < 0.5:
            is_drawn = rounds[-1].answer.shown is not None
            rounds.append(change_round(rng, shown) if is_drawn and rng.random() < 0.5 else _ask_again(rng, shown))
        else:
            start = pick(rng, (_draw, _ask, _describe, _play, _play, _listen))
            rounds.append(start(rng, held_out))
    return tuple(rounds)


def _speak(rng: np.random.Generator, held_out: bool) -> Round:
    wanted = dataclasses.replace(_picture(rng, held_out), position=_OPEN_PLACE, background=_OPEN_BACKGROUND)
    answer = show(rng, fill(_SPOKEN_ANSWER, wanted), wanted)
    return Round("speak", Message(fill(pick(rng, _SPOKEN_REQUESTS), wanted)), answer)


def _draw(rng: np.random.Generator, held_out: bool) -> Round:
    wanted, request = _picture(rng, held_out), pick(rng, _DRAW_REQUESTS)
    if rng.random() < 0.5:
        request += _PLACE
    else:
        wanted = dataclasses.replace(wanted, position=_OPEN_PLACE)
    if rng.random() < 0.5:
        request += _BACKGROUND
    else:
        wanted = dataclasses.replace(wanted, background=_OPEN_BACKGROUND)
    return Round(
        "draw", Message(fill(request + ".", wanted)), show(rng, fill(pick(rng, _DRAW_ANSWERS), wanted), wanted)
    )


def _ask(rng: np.random.Generator, held_out: bool) -> Round:
    """The user shows a picture and asks one thing about it."""
    shown = _picture(rng, held_out)
    attribute = pick(rng, tuple(_QUESTIONS))
    request = show(rng, pick(rng, _QUESTIONS[attribute]), shown)
    return Round("ask", request, Message(fill(_ANSWERS[attribute], shown)))


def _ask_again(rng: np.random.Generator, shown: PictureAttributes) -> Round:
    """One thing about the picture that is in sight."""
    attribute = pick(rng, tuple(_QUESTIONS))
    return Round("ask", Message(pick(rng, _QUESTIONS[attribute])), Message(fill(_ANSWERS[attribute], shown)))


def _describe(rng: np.random.Generator, held_out: bool) -> Round:
    shown = _picture(rng, held_out)
    request = show(rng, pick(rng, _DESCRIBE_REQUESTS), shown)
    return Round("describe", request, Message(fill(_DESCRIPTION, shown)))


def _play(rng: np.random.Generator, held_out: bool) -> Round:
    wanted = pick(rng, music.all_attributes(held_out=held_out))
    answer = show(rng, fill(pick(rng, _PLAY_ANSWERS), wanted), wanted)
    return Round("play", Message(fill(pick(rng, _PLAY_REQUESTS), wanted)), answer)


def _listen(rng: np.random.Generator, held_out: bool) -> Round:
    heard = pick(rng, music.all_attributes(held_out=held_out))
    return Round("listen", show(rng, pick(rng, _LISTEN_REQUESTS), heard), Message(fill(_LISTEN_ANSWER, heard)))


def _picture(rng: np.random.Generator, held_out: bool) -> PictureAttributes:
    return pick(rng, pictures.all_attributes(held_out=held_out))
