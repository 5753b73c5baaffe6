"""Meta-topics into topics: a talk of several rounds for each, then near copies out.

Source: AnyGPT appendix D, figure 5: 100 meta-topics, 4 rounds of 50. Leaves ``OUTPUT/topics/topics.parquet``
(:data:`SCHEMA`), in the order of the meta-topics and of the answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.samples import Filtered
from shards.errors import ConfigError
from synthesis.calls import CallFailed, Request, together
from synthesis.config import TextConfig
from synthesis.names import famous_name
from synthesis.prompts import read_numbered, topic_messages
from synthesis.similarity import near_copies
from synthesis.units import Ask, LeftOut, Row, UnitResult, filtered, joined, make_request, rejected

NAME = "topics"
SCHEMA = pa.schema(
    [
        pa.field("topic_id", pa.string(), nullable=False),
        pa.field("meta_topic", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
    ]
)
KEY = "topic_id"
MOST_CHARS = 120


def meta_topics(config: TextConfig) -> list[str]:
    """The list of the config, what an offline writer may say about each left away.

    Raises:
        ConfigError: no such file, nothing in it, or the same twice.
    """
    path = config.topics.meta_topics
    found = [line.partition("|")[0].strip() for line in read_lines(path, key="topics.meta_topics")]
    doubles = sorted({name for name in found if found.count(name) > 1})
    if not found or doubles:
        fault = f"{doubles[0]!r} twice" if doubles else "none"
        raise ConfigError(f"{path}: expected one meta-topic a line, each once, found {fault}; correct the file")
    return found[: config.topics.num_meta_topics]


def read_lines(path: Path, *, key: str) -> list[str]:
    """Lines of a list, without comments (``#``) and empty ones."""
    if not path.is_file():
        raise ConfigError(f"{key}: expected a file, found none at {path}; correct the path")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def facts(config: TextConfig) -> dict[str, Any]:
    """What decides the topics beside the meta-topics themselves."""
    return config.topics.model_dump(mode="json", exclude={"meta_topics", "num_meta_topics"})


def units(config: TextConfig) -> list[list[str]]:
    """The meta-topics of every unit."""
    names, size = meta_topics(config), config.topics.meta_topics_per_unit
    return [names[start : start + size] for start in range(0, len(names), size)]


def round_request(config: TextConfig, meta_topic: str, round_number: int, answers: Sequence[str]) -> Request:
    """The request for one round of a meta-topic, after the answers of the rounds before."""
    return make_request(config, NAME, topic_messages(meta_topic, config.topics, answers), meta_topic, round_number)


async def write_unit(config: TextConfig, number: int, ask: Ask) -> UnitResult:
    """All rounds of the meta-topics of a unit; the meta-topics at once, the rounds of each in turn."""
    chosen = units(config)[number]
    first = number * config.topics.meta_topics_per_unit
    done = await together(_write_meta_topic(config, first + nth, name, ask) for nth, name in enumerate(chosen))
    return joined(done)


async def _write_meta_topic(config: TextConfig, number: int, meta_topic: str, ask: Ask) -> UnitResult:
    result, answers = UnitResult(), list[str]()
    for round_number in range(config.topics.rounds):
        where = f"{number:03d}-{round_number}"
        try:
            answer = await ask(round_request(config, meta_topic, round_number, answers))
        except CallFailed as error:
            result.add(rejected(NAME, where, error.reason, error.message, meta_topic))
            continue
        listed = read_numbered(answer.text)
        if not listed:
            message = f"expected a numbered list, found {answer.text[:200]!r}"
            result.add(rejected(NAME, where, "topic_list_missing", message, meta_topic))
            continue
        answers.append(answer.text)
        for nth, (_, topic) in enumerate(listed):
            result.add(_topic(config, f"{where}-{nth:03d}", nth, topic, meta_topic))
    return result


def _topic(config: TextConfig, topic_id: str, nth: int, topic: str, meta_topic: str) -> Row | LeftOut:
    fault = topic_fault(config, topic)
    if fault is not None:
        return rejected(NAME, topic_id, fault, topic[:200], meta_topic)
    if nth >= config.topics.per_round:
        return filtered(NAME, topic_id, "more_than_asked", topic, meta_topic)
    return {"topic_id": topic_id, "meta_topic": meta_topic, "topic": topic}


def topic_fault(config: TextConfig, topic: str) -> str | None:
    """The reason why a text is no topic, or None."""
    words = len(topic.split())
    if words < config.topics.min_words or not any(letter.isalpha() for letter in topic):
        return "topic_too_short"
    if words > config.topics.max_words or len(topic) > MOST_CHARS:
        return "topic_too_long"
    if famous_name(topic, config.famous_names):
        return "famous_name"
    return None


def sift(config: TextConfig, rows: Iterable[Row]) -> Iterator[Row | Filtered]:
    """The rows again, near copies of earlier ones replaced by why they are left out."""
    listed = list(rows)
    found = near_copies([row["topic"] for row in listed], threshold=config.topics.similarity, words=1)
    for row, copy in zip(listed, found, strict=True):
        if copy is None:
            yield row
        else:
            of = f"{row['topic']!r} is like {listed[copy[0]][KEY]} ({copy[1]:.2f})"
            yield filtered(NAME, row[KEY], "near_copy", of, row["meta_topic"])
