"""What is asked of a language model, in our own words, and how its answers are read.

Source: AnyGPT appendix D says what each prompt has to ask for; the wording is ours. An answer is text that may hold
anything: what is not in the form asked for is left to the validator, under a named reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from synthesis.calls import Message
from synthesis.config import DialoguesConfig, Requirement, ScenariosConfig, TopicsConfig
from synthesis.dialogues import DialogueTurn

SPEAKERS: Mapping[str, Literal["user", "assistant"]] = {"User": "user", "AnyGPT": "assistant"}

REQUIREMENT_TEXTS: Mapping[Requirement, str] = {
    Requirement.USER_GIVES_IMAGE: "the user shows a picture and asks about it",
    Requirement.USER_SHARES_MUSIC: "the user plays a piece of music and asks about it",
    Requirement.ASKS_FOR_MUSIC: "the user asks for a piece of music and gets one",
    Requirement.ASKS_FOR_IMAGE: "the user asks for a picture and gets one",
}

_TOPICS = """\
Theme: {meta_topic}

List {count} things that an ordinary person might talk over with a friendly chatbot, all within this theme. In every such \
talk somebody looks at pictures, listens to music, or has one of them made. Keep to everyday life; nothing for scholars.

Answer with a numbered list of {count} lines, {min_words} to {max_words} words each, and nothing else."""

_MORE_TOPICS = """\
List {count} more on the same theme, none like those before. Again a numbered list of {count} lines, and nothing else."""

_SCENARIOS = """\
You make up scenes in which somebody turns to a chatbot for help. For each topic below, write one scene in one or two \
sentences: who the user is, what is shown or played or asked for, and where the talk goes.

- The user is an ordinary person; nothing for scholars.
- Pictures and music may be given by either side. There is no video, and no picture is a chart.
- Whoever brings a picture or a piece of music has a question about it.
- No well-known artwork, song or person appears; everything is made up.

Here are scenes of the kind we want:

{demonstrations}

In every scene you write now, {requirement}.

Topics:
{topics}

Answer with a numbered list, one scene a topic, in the order of the topics, and nothing else."""

_DIALOGUES = """\
You write down what a user and a chatbot called AnyGPT say to each other. Both can put pictures and music into what they \
say. A picture is written [image: what it shows], a piece of music [music: how it sounds], at the end of what is said.

- {min_rounds} to {max_rounds} rounds. A round is one line of the user and one line of AnyGPT, and the user begins.
- Each line says {min_words} to {max_words} words, not counting what is in brackets.
- The user always asks or tells AnyGPT to do something.
- At most {max_music} piece of music and {max_images} pictures in the whole dialogue.
- A description in brackets is full of detail: what, which colours, where; or genre, style and instruments. It names no \
famous person, no known artwork and no known piece of music.
- To turn a picture into music, or music into a picture, AnyGPT first says what it has understood, then gives the result.
- Each line begins with "User:" or "AnyGPT:". Write nothing else.

{demonstrations}

Now the next one. In it, {requirement}.

Topic: {topic}
Scene: {scenario}"""

_NUMBERED = re.compile(r"^\s*\**(\d{1,4})\**\s*[.):]\s*(.*\S)\s*$")
_SPEAKER = re.compile(r"^\s*\**([A-Z][A-Za-z]{1,19}(?: [A-Z][a-z]{1,19})?)\**\s*:\**\s*(.*)$")


@dataclass(frozen=True, slots=True)
class ScenarioDemonstration:
    """A topic and a scene for it, as we want them."""

    topic: str
    scenario: str
    requirement: Requirement


@dataclass(frozen=True, slots=True)
class DialogueDemonstration:
    """A scene and the dialogue for it, as we want them."""

    topic: str
    scenario: str
    requirement: Requirement
    turns: tuple[DialogueTurn, ...]


def topic_messages(meta_topic: str, config: TopicsConfig, answers: Sequence[str]) -> tuple[Message, ...]:
    """The talk that lists topics, as far as it has come.

    Args:
        answers: of the rounds before.
    """
    first = _TOPICS.format(
        meta_topic=meta_topic, count=config.per_round, min_words=config.min_words, max_words=config.max_words
    )
    messages = [Message("user", first)]
    for answer in answers:
        messages += [Message("assistant", answer), Message("user", _MORE_TOPICS.format(count=config.per_round))]
    return tuple(messages)


def scenario_messages(
    topics: Sequence[str], requirement: Requirement, demonstrations: Sequence[ScenarioDemonstration]
) -> tuple[Message, ...]:
    """The prompt for one scenario a topic."""
    shown = "\n\n".join(f"Topic: {one.topic}\nScene: {one.scenario}" for one in demonstrations)
    listed = "\n".join(f"{number}. {topic}" for number, topic in enumerate(topics, 1))
    text = _SCENARIOS.format(demonstrations=shown, requirement=REQUIREMENT_TEXTS[requirement], topics=listed)
    return (Message("user", text),)


def dialogue_messages(
    topic: str,
    scenario: str,
    requirement: Requirement,
    demonstrations: Sequence[DialogueDemonstration],
    config: DialoguesConfig,
) -> tuple[Message, ...]:
    """The prompt for the dialogue of one scenario."""
    shown = "\n\n".join(
        f"Topic: {one.topic}\nScene: {one.scenario}\n{format_dialogue(one.turns)}" for one in demonstrations
    )
    text = _DIALOGUES.format(
        **config.model_dump(include={"min_rounds", "max_rounds", "min_words", "max_words", "max_music", "max_images"}),
        demonstrations=shown,
        requirement=REQUIREMENT_TEXTS[requirement],
        topic=topic,
        scenario=scenario,
    )
    return (Message("user", text),)


def format_dialogue(turns: Sequence[DialogueTurn]) -> str:
    """A dialogue as prompts show it and answers write it, a line a turn."""
    names = {role: speaker for speaker, role in SPEAKERS.items()}
    return "\n".join(f"{names[turn.role]}: {turn.text}" for turn in turns)


def read_numbered(text: str) -> list[tuple[int, str]]:
    """Number and text of each line of a numbered list; other lines are passed over, quotes and emphasis removed."""
    found = [match for match in map(_NUMBERED.match, text.splitlines()) if match]
    return [(int(match[1]), match[2].strip("*\"'“” ").strip()) for match in found]


def read_turns(text: str) -> list[tuple[str, str]]:
    """Speaker and words of each turn; a line without a speaker goes on with the turn before it.

    What stands before the first speaker is passed over, as models like to announce what they are about to do.
    """
    turns: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = _SPEAKER.match(line)
        if match:
            turns.append((match[1], match[2].strip()))
        elif turns and line.strip():
            speaker, words = turns[-1]
            turns[-1] = (speaker, f"{words} {line.strip()}".strip())
    return turns


def typical_answer_tokens(config: TopicsConfig | ScenariosConfig | DialoguesConfig) -> int:
    """Tokens of an answer as asked for, for plans; what a call may cost at most is bounded by ``max_*_tokens``."""
    if isinstance(config, TopicsConfig):
        return config.per_round * 10
    if isinstance(config, ScenariosConfig):
        return config.topics_per_call * 50
    return config.max_rounds * 2 * (config.max_words + 5) + (config.max_images + config.max_music) * 30
