"""A writer without a network: rules that answer our own prompts, for tests and for ``make sft`` on any machine.

An answer is a function of the request alone, of which the model's name is a part: it says in which manner dialogues are
written. Pictures and music are those that the sample-corpora renderers can make, in their own words
(:mod:`pipeline.sample_corpora.pictures`, :mod:`~pipeline.sample_corpora.music`); compositions that are kept for evaluation
come only from the model that is named after them. What is said about them is true, so that a model that learns from it can
be scored.

Topics are a frame, a thing and an occasion; any two of one meta-topic differ in two of the three.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pipeline.sample_corpora.draws import generator, pick, stable_int
from synthesis.calls import Answer, Request
from synthesis.config import Requirement, RulesModel, TextConfig
from synthesis.llm_rules_brief import write_brief_dialogue
from synthesis.llm_rules_dialogues import write_dialogue
from synthesis.prompts import REQUIREMENT_TEXTS, read_numbered
from synthesis.topics import read_lines

_FRAMES = (
    "a poster for",
    "a simple logo for",
    "background music for",
    "a picture of",
    "cover art for",
    "a theme tune for",
    "a greeting card about",
    "a calm melody about",
    "a sticker showing",
    "guessing a photo of",
    "a cheerful song about",
    "an invitation with",
    "the right sound for",
    "a sign for",
    "a drawing lesson with",
    "a short jingle for",
    "choosing colours for",
    "a soundtrack for",
    "describing a picture of",
    "an icon for",
    "naming a tune about",
    "a postcard with",
    "a dance to",
    "a paper cut of",
    "a practice piece about",
    "a badge with",
    "a quiz about",
    "a banner for",
    "humming along to",
)
_OCCASIONS = (
    "for a birthday",
    "on rainy evenings",
    "before the trip",
    "with my grandmother",
    "in tiny flats",
    "for absolute beginners",
    "during lunch breaks",
    "for our club",
    "as a gift",
    "without any colour",
    "for shy friends",
    "at summer fairs",
    "in three colours",
    "for my sister",
    "on long journeys",
    "for little money",
    "for the village",
    "after hard weeks",
    "with the neighbours",
    "near sunny windows",
    "before six o'clock",
    "for a colleague",
    "for family albums",
    "without many words",
    "at short notice",
    "for waiting rooms",
    "in old style",
    "for school projects",
    "as a surprise",
)
_ADJECTIVES = ("old", "small", "favourite", "modern", "funny", "quiet", "colourful", "homemade")
_SCENES = {
    Requirement.USER_GIVES_IMAGE: (
        "The user thinks about {topic} and shows a picture. They ask what it shows{then}.",
        "Somebody has a picture that belongs to {topic}. They want it described{then}.",
    ),
    Requirement.USER_SHARES_MUSIC: (
        "The user plays a piece of music while talking about {topic}. They ask what is heard{then}.",
        "Somebody has recorded a piece for {topic} and plays it. They want to know how it is made{then}.",
    ),
    Requirement.ASKS_FOR_MUSIC: (
        "The user plans {topic} and asks for a piece of music that fits{then}.",
        "Somebody needs music: it is about {topic}. They say exactly how it should sound{then}.",
    ),
    Requirement.ASKS_FOR_IMAGE: (
        "The user plans {topic} and asks for a picture that fits{then}.",
        "Somebody needs a picture: it is about {topic}. They say exactly what it should show{then}.",
    ),
}
_THEN = (
    "",
    ", then ask a question about the answer",
    ", and later for a change",
    ", and are curious about the details",
)
_OCCASION_STEP = 5  # prime to the number of occasions: things of one frame get different occasions


class RulesWriter:
    """Answers every request of :mod:`synthesis.prompts` by rules."""

    def __init__(self, config: TextConfig) -> None:
        """Read what there is to say about each meta-topic."""
        self._path = config.topics.meta_topics

    async def write(self, request: Request) -> Answer:
        """The answer to a request; there always is one."""
        rules = {"topics": _topics, "scenarios": _scenarios, "dialogues": _dialogue}
        text = rules[request.kind](request, things_of(self._path))
        return Answer(text, request.estimated_tokens, len(text) // 4 + 1, request.model)

    async def close(self) -> None:
        """Nothing is open."""


@functools.lru_cache(maxsize=4)
def things_of(path: Path) -> dict[str, tuple[str, ...]]:
    """Meta-topic -> what may be said about it, from the list of meta-topics."""
    found: dict[str, tuple[str, ...]] = {}
    for line in read_lines(path, key="topics.meta_topics"):
        name, _, things = line.partition("|")
        listed = tuple(thing.strip() for thing in things.split(",") if thing.strip())
        found[name.strip()] = listed or tuple(f"{adjective} {name.strip().lower()}" for adjective in _ADJECTIVES)
    return found


def make_topic(meta_topic: str, things: tuple[str, ...], nth: int) -> str:
    """The nth topic of a meta-topic; as many as there are pairs of a thing and a frame are all different."""
    first_frame, first_occasion = (stable_int("topic", meta_topic, what, num_bytes=4) for what in ("frame", "occasion"))
    round_number, place = divmod(nth, len(things) * len(_FRAMES))
    frame, thing = divmod(place, len(things))
    occasion = (frame + _OCCASION_STEP * thing + first_occasion + 11 * round_number) % len(_OCCASIONS)
    return f"{_FRAMES[(frame + first_frame) % len(_FRAMES)]} {things[thing]} {_OCCASIONS[occasion]}"


def _topics(request: Request, known: dict[str, tuple[str, ...]]) -> str:
    meta_topic = _line(request.messages[0].content, "Theme")
    things = known.get(meta_topic) or tuple(f"{adjective} {meta_topic.lower()}" for adjective in _ADJECTIVES)
    past = sum(message.role == "assistant" for message in request.messages)
    asked = re.search(r"List (\d+)", request.messages[-1].content)
    count = int(asked[1]) if asked else 0
    topics = [make_topic(meta_topic, things, past * count + nth) for nth in range(count)]
    return _numbered(topics)


def _scenarios(request: Request, known: dict[str, tuple[str, ...]]) -> str:
    prompt = request.messages[-1].content
    requirement = _requirement(prompt)
    _, _, listed = prompt.rpartition("\nTopics:\n")
    rng = generator(request.seed, "scenarios")
    scenes = [
        pick(rng, _SCENES[requirement]).format(topic=topic, then=pick(rng, _THEN)) for _, topic in read_numbered(listed)
    ]
    return _numbered(scenes)


def _dialogue(request: Request, known: dict[str, tuple[str, ...]]) -> str:
    _, _, task = request.messages[-1].content.rpartition("\nNow the next one.")
    rng = generator(request.seed, "dialogue", _line(task, "Scene"))
    if request.model != RulesModel.PLAIN:
        held_out = request.model == RulesModel.BRIEF_HELD_OUT
        return write_brief_dialogue(rng, _requirement(task), held_out=held_out)
    named = _all_things(tuple(known.values())).search(_line(task, "Topic"))
    return write_dialogue(rng, _requirement(task), named[0] if named else "")


@functools.lru_cache(maxsize=4)
def _all_things(known: tuple[tuple[str, ...], ...]) -> re.Pattern[str]:
    things = sorted({thing for things in known for thing in things}, key=lambda thing: (-len(thing), thing))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, things))})\b")


def _requirement(prompt: str) -> Requirement:
    """Told from the sentence that prompts say it in; the last one counts, for demonstrations come before."""
    return max(REQUIREMENT_TEXTS, key=lambda requirement: prompt.rfind(REQUIREMENT_TEXTS[requirement]))


def _line(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _numbered(lines: list[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
