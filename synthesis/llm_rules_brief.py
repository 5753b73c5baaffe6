"""The offline writer's brief manner, for a small model: a request names what matters in it, one to four words of the world.

Rounds: draw, change (the picture just drawn), ask (one thing about a picture shown or drawn), describe, play, listen, ask
what the last piece was. What a request for a picture leaves open is in the center, on white; what one for music leaves open
is a fast rising scale in C major. So every answer follows from what was said and shown, and a model that
has heard few dialogues can learn it. There is one wording for each kind of answer, and they begin with different words, or
a small model ends the one where it would end the other.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.sample_corpora import music
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.music import MusicAttributes
from pipeline.sample_corpora.pictures import PictureAttributes
from synthesis.config import Requirement
from synthesis.llm_rules_talk import Manner, Round, Talk, hold

_OPEN_PLACE, _OPEN_BACKGROUND = "center", "white"
_OPEN_MUSIC = {"key": "C major", "tempo": "fast", "pattern": "rising scale"}
_PLAIN_SHARE = 0.6
_DRAW = ("Draw {a_colour} {shape}", "Show me {a_colour} {shape}")
_PLACE, _BACKGROUND = " {place}", " on a {background} background"
_DRAWN = "Here is your {shape}."
_CHANGE = {
    "colour": ("Now make it {colour}.", "The same in {colour}, please."),
    "position": ("Now put it {place}.", "The same {place}, please."),
    "background": ("Now make the background {background}.", "The same on {background}, please."),
}
_CHANGED = "Done, here it is."
_QUESTIONS = {
    "colour": "What colour is it?",
    "shape": "What shape is it?",
    "position": "Where is it?",
    "background": "What is behind it?",
}
_ANSWERS = {
    "colour": "It is {colour}.",
    "shape": "This is {a_shape}.",
    "position": "You see it {place}.",
    "background": "Behind it is {background}.",
}
_DESCRIBE = ("Describe this picture.", "Tell me about this picture.")
_DESCRIBED = "The picture shows {a_colour} {shape} {place} on {background}."
_PLAY = ("Play music on the {instrument}.", "Let me hear {a_instrument}.")
_PLAYED = "Listen to the {instrument}."
_LISTEN = ("What do you hear?", "Which instrument plays here?")
_HEARD = "I hear {a_instrument}."


def write_brief_dialogue(rng: np.random.Generator, requirement: Requirement, *, held_out: bool) -> str:
    """Two or three rounds that meet the requirement.

    Args:
        held_out: draw and show only what is kept for evaluation, else nothing of it. What a request for music names is too
            little to be kept apart: it is the same on either side.
    """
    return hold(Talk(rng, held_out=held_out), requirement, _MANNER)


def _possible(talk: Talk, images: int, pieces: int) -> list[Round]:
    found: list[Round] = []
    if images > 0:
        found += [_draw, _ask, _ask, _describe]
        if isinstance(talk.last, PictureAttributes) and talk.is_drawn:
            found += [_change, _change]
    if pieces > 0:
        found += [_play, _play, _listen]
    if talk.last is not None or not found:
        found += [_about_last]
    return found


def _draw(talk: Talk) -> None:
    shown, request = talk.picture(), pick(talk.rng, _DRAW)
    names_place, names_background = False, False
    if talk.rng.random() >= _PLAIN_SHARE:
        names_place, names_background = pick(talk.rng, ((True, False), (False, True), (True, True)))
    if names_place:
        request += _PLACE
    else:
        shown = dataclasses.replace(shown, position=_OPEN_PLACE)
    if names_background:
        request += _BACKGROUND
    else:
        shown = dataclasses.replace(shown, background=_OPEN_BACKGROUND)
    talk.ask((f"{request}.",), (), shown)
    talk.say("AnyGPT", _DRAWN, shown, shown)


def _change(talk: Talk) -> None:
    name, changed = talk.changed()
    talk.ask(_CHANGE[name], (), changed)
    talk.say("AnyGPT", _CHANGED, changed, changed)


def _ask(talk: Talk) -> None:
    shown, attribute = talk.picture(), pick(talk.rng, tuple(_QUESTIONS))
    talk.ask((_QUESTIONS[attribute],), (), shown, shown)
    talk.say("AnyGPT", _ANSWERS[attribute], shown)


def _describe(talk: Talk) -> None:
    shown = talk.picture()
    talk.ask(_DESCRIBE, (), shown, shown)
    talk.say("AnyGPT", _DESCRIBED, shown)


def _play(talk: Talk) -> None:
    shown = MusicAttributes(pick(talk.rng, music.INSTRUMENTS), **_OPEN_MUSIC)
    talk.ask(_PLAY, (), shown)
    talk.say("AnyGPT", _PLAYED, shown, shown)


def _listen(talk: Talk) -> None:
    shown = talk.piece()
    talk.ask(_LISTEN, (), shown, shown)
    talk.say("AnyGPT", _HEARD, shown)


def _about_last(talk: Talk) -> None:
    assert talk.last is not None
    if isinstance(talk.last, MusicAttributes):
        talk.ask(_LISTEN, (), talk.last)
        talk.say("AnyGPT", _HEARD, talk.last)
    else:
        attribute = pick(talk.rng, tuple(_QUESTIONS))
        talk.ask((_QUESTIONS[attribute],), (), talk.last)
        talk.say("AnyGPT", _ANSWERS[attribute], talk.last)


_MANNER = Manner(
    wanted={
        Requirement.USER_GIVES_IMAGE: ((_ask, 0.6), (_describe, 0.4)),
        Requirement.USER_SHARES_MUSIC: ((_listen, 1.0),),
        Requirement.ASKS_FOR_MUSIC: ((_play, 1.0),),
        Requirement.ASKS_FOR_IMAGE: ((_draw, 1.0),),
    },
    costs={_ask: (1, 0), _describe: (1, 0), _draw: (1, 0), _listen: (0, 1), _play: (0, 1)},
    possible=_possible,
)
