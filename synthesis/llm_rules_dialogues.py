"""The offline writer's dialogues: rounds about pictures and music of the sample corpora, in a few plain wordings.

A round is one of: draw, change (the picture just drawn), describe, play, listen, ask about the last medium, picture to
music and music to picture. The two crossings follow a fixed rule, so that they can be learned and checked:
shape <-> instrument, colour <-> key, background <-> tempo, position <-> pattern.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.music import MusicAttributes
from pipeline.sample_corpora.pictures import PictureAttributes
from synthesis.config import Requirement
from synthesis.llm_rules_talk import Manner, Round, Talk, hold

_CROSSING_SHARE = 0.25

_INSTRUMENT_OF: dict[str, str] = dict(
    zip(pictures.SHAPES, ("flute", "organ", "bell", "bell", "guitar", "guitar"), strict=True)
)
_KEY_OF: dict[str, str] = dict(
    zip(pictures.COLOURS, ("C major", "F major", "G major", "A minor", "D minor", "E minor"), strict=True)
)
_TEMPO_OF = {"white": "fast", "beige": "medium", "gray": "medium", "black": "slow"}
_PATTERN_OF = {
    "top": "rising scale",
    "bottom": "falling scale",
    "left": "arpeggio",
    "right": "arpeggio",
    "center": "drone",
}

_DRAW = (
    "Please draw {a_colour} {shape} {place} on a {background} background.",
    "Can you make a {background} picture with {a_colour} {shape} {place}?",
    "I need a picture: {a_colour} {shape} {place} on {background}.",
    "Show me {a_colour} {shape} {place} on a {background} background, please.",
)
_DRAW_FOR = (
    "For my {thing}: please draw {a_colour} {shape} {place} on {background}.",
    "My {thing} needs a picture: {a_colour} {shape} {place} on {background}.",
)
_DRAWN = (
    "Here is {a_colour} {shape} {place} on {background}.",
    "Sure, here is the {colour} {shape} you asked for.",
    "Of course, this is your {shape} on a {background} background.",
)
_CHANGE = {
    "colour": ("Now draw the same picture in {colour}, please.", "Can you make the {shape} in the picture {colour}?"),
    "position": ("Now put the {shape} {place} of the picture.", "Can you draw the {shape} {place} instead, please?"),
    "background": (
        "Now draw it on a {background} background, please.",
        "Can you draw everything behind the {shape} in {background}?",
    ),
}
_CHANGED = (
    "Done, now it is {a_colour} {shape} {place} on {background}.",
    "Sure, here is the {colour} {shape} on {background}.",
)
_DESCRIBE = (
    "What do you see in this picture?",
    "Please describe this picture to me.",
    "Which shape is this, and where is it?",
)
_DESCRIBE_FOR = ("What does the picture for my {thing} show?",)
_DESCRIBED = (
    "I see {a_colour} {shape} {place} on a {background} background.",
    "The {shape} {place} is {colour} and the background is {background}.",
    "This picture shows {a_colour} {shape} {place} on {background}.",
)
_ABOUT_PICTURE = (
    ("Which colour does the {shape} have in the picture?", "The {shape} in the picture is {colour}."),
    ("Where exactly is the {shape} in the picture?", "You find the {shape} {place} of the picture."),
    ("What is behind the {shape} in the picture?", "Behind the {shape} everything is plain {background}."),
)
_PLAY = (
    "Please play {a_instrument} with {a_pattern} in {key}, {tempo} tempo.",
    "Can you make {tempo} music in {key}, {a_pattern} on the {instrument}?",
    "I want to hear {a_pattern} on the {instrument}, {tempo}, in {key}.",
)
_PLAY_FOR = ("For my {thing}: {tempo} {instrument} music, {a_pattern} in {key}, please.",)
_PLAYED = (
    "Here is {a_instrument} playing {a_pattern} in {key}.",
    "Listen, this is {tempo} {instrument} music in {key}.",
    "Sure, here is {a_pattern} on the {instrument}.",
)
_LISTEN = (
    "What do you hear in this music?",
    "Please describe this piece of music to me.",
    "Which instrument plays here, and how fast is it?",
)
_LISTEN_FOR = ("What is the music for my {thing} like?",)
_HEARD = (
    "I hear {a_instrument} playing {a_pattern} in {key}, at a {tempo} tempo.",
    "The {instrument} plays {a_pattern} in {key}, and the tempo is {tempo}.",
)
_ABOUT_MUSIC = (
    ("Which instrument do we hear in this piece?", "The instrument you hear is {a_instrument}."),
    ("How fast is this piece of music?", "The tempo of this piece is {tempo}."),
    ("In which key is this piece of music?", "This piece of music is in {key}."),
    ("What does the {instrument} play in this piece?", "The {instrument} plays {a_pattern} in this piece."),
)
_TO_MUSIC = ("Which music would fit this picture?", "Can you turn this picture into music?")
_SEEN = ("I see {a_colour} {shape} {place} on {background}, so I play this.",)
_TO_PICTURE = ("Which picture would fit this music?", "Can you turn this music into a picture?")
_LISTENED = ("I hear {tempo} {instrument} music, {a_pattern} in {key}, so I draw.",)


def write_dialogue(rng: np.random.Generator, requirement: Requirement, thing: str) -> str:
    """Two or three rounds that keep every rule and meet the requirement.

    Args:
        thing: what the talk is about, in a word or two; left away where it has a word of the renderers' own.
    """
    thing = "" if pictures.parse_caption(thing) or music.parse_caption(thing) else thing
    return hold(Talk(rng, thing), requirement, _MANNER)


def music_of(picture: PictureAttributes) -> MusicAttributes:
    """The piece that fits a picture, by the rule of the crossings."""
    return MusicAttributes(
        _INSTRUMENT_OF[picture.shape],
        _KEY_OF[picture.colour],
        _TEMPO_OF[picture.background],
        _PATTERN_OF[picture.position],
    )


@functools.cache
def pictures_of(piece: MusicAttributes) -> tuple[PictureAttributes, ...]:
    """The pictures that a piece fits and that may be shown; of several, any is right."""
    return tuple(one for one in pictures.all_attributes(held_out=False) if music_of(one) == piece)


def _possible(talk: Talk, images: int, pieces: int) -> list[Round]:
    found: list[Round] = []
    if images > 0:
        found += [_draw, _describe]
        if isinstance(talk.last, PictureAttributes):
            found += [_change, _change]
    if pieces > 0:
        found += [_play, _listen]
    if talk.last is not None or not found:
        found += [_about_last]
    return found


def _draw(talk: Talk) -> None:
    shown = talk.picture()
    talk.ask(_DRAW, _DRAW_FOR, shown)
    talk.say("AnyGPT", pick(talk.rng, _DRAWN), shown, shown)


def _change(talk: Talk) -> None:
    name, changed = talk.changed()
    talk.ask(_CHANGE[name], (), changed)
    talk.say("AnyGPT", pick(talk.rng, _CHANGED), changed, changed)


def _describe(talk: Talk) -> None:
    shown = talk.picture()
    talk.ask(_DESCRIBE, _DESCRIBE_FOR, shown, shown)
    talk.say("AnyGPT", pick(talk.rng, _DESCRIBED), shown)


def _play(talk: Talk) -> None:
    shown = talk.piece()
    talk.ask(_PLAY, _PLAY_FOR, shown)
    talk.say("AnyGPT", pick(talk.rng, _PLAYED), shown, shown)


def _listen(talk: Talk) -> None:
    shown = talk.piece()
    talk.ask(_LISTEN, _LISTEN_FOR, shown, shown)
    talk.say("AnyGPT", pick(talk.rng, _HEARD), shown)


def _about_last(talk: Talk) -> None:
    assert talk.last is not None
    question, answer = pick(talk.rng, _ABOUT_PICTURE if isinstance(talk.last, PictureAttributes) else _ABOUT_MUSIC)
    talk.ask((question,), (), talk.last)
    talk.say("AnyGPT", answer, talk.last)


def _to_music(talk: Talk) -> None:
    options = tuple(one for one in pictures.all_attributes(held_out=False) if not music_of(one).held_out)
    shown = pick(talk.rng, options)
    talk.ask(_TO_MUSIC, (), shown, shown)
    talk.say("AnyGPT", pick(talk.rng, _SEEN), shown, music_of(shown))


def _to_picture(talk: Talk) -> None:
    options = tuple(one for one in music.all_attributes(held_out=False) if pictures_of(one))
    shown = pick(talk.rng, options)
    talk.ask(_TO_PICTURE, (), shown, shown)
    talk.say("AnyGPT", pick(talk.rng, _LISTENED), shown, pick(talk.rng, pictures_of(shown)))


_MANNER = Manner(
    wanted={
        Requirement.USER_GIVES_IMAGE: ((_to_music, _CROSSING_SHARE), (_describe, 1 - _CROSSING_SHARE)),
        Requirement.USER_SHARES_MUSIC: ((_to_picture, _CROSSING_SHARE), (_listen, 1 - _CROSSING_SHARE)),
        Requirement.ASKS_FOR_MUSIC: ((_to_music, _CROSSING_SHARE), (_play, 1 - _CROSSING_SHARE)),
        Requirement.ASKS_FOR_IMAGE: ((_to_picture, _CROSSING_SHARE), (_draw, 1 - _CROSSING_SHARE)),
    },
    costs={
        _describe: (1, 0),
        _draw: (1, 0),
        _listen: (0, 1),
        _play: (0, 1),
        _to_music: (1, 1),
        _to_picture: (1, 1),
    },
    possible=_possible,
)
