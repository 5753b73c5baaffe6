"""Topics into scenarios: ten topics a call, five demonstrations, one requirement.

Source: AnyGPT appendix D, figure 6. Leaves ``OUTPUT/scenarios/scenarios.parquet`` (:data:`SCHEMA`). Call k takes topics
``[10 k, 10 k + 10)`` of an endless list: all topics in an order drawn from the seed, then all again in another order. Its
demonstrations and its requirement depend on the seed and k alone.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from configs.load import Config, validate
from pipeline.sample_corpora.draws import balanced, generator
from pipeline.samples import Filtered
from shards.errors import ConfigError
from synthesis import topics
from synthesis.calls import CallFailed, Request, together
from synthesis.config import Requirement, TextConfig, text_json
from synthesis.names import famous_name
from synthesis.prompts import ScenarioDemonstration, read_numbered, scenario_messages
from synthesis.units import Ask, LeftOut, Row, UnitResult, joined, make_request, rejected

NAME = "scenarios"
SCHEMA = pa.schema(
    [
        pa.field("scenario_id", pa.string(), nullable=False),
        pa.field("meta_topic", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("requirement", pa.string(), nullable=False),
        pa.field("scenario", pa.string(), nullable=False),
    ]
)
KEY = "scenario_id"


class _Demonstration(Config):
    topic: str = Field(min_length=1)
    requirement: Requirement
    scenario: str = Field(min_length=1)


class _Demonstrations(Config):
    demonstration: tuple[_Demonstration, ...] = Field(min_length=1)


@functools.lru_cache(maxsize=4)
def load_demonstrations(path: Path, least: int) -> tuple[ScenarioDemonstration, ...]:
    """The pool that calls draw from.

    Raises:
        ConfigError: no such file, or fewer than a call needs.
    """
    found = validate(read_tables(path, "scenarios"), _Demonstrations, where=str(path)).demonstration
    check_pool(path, len(found), least)
    return tuple(ScenarioDemonstration(one.topic, one.scenario, one.requirement) for one in found)


def read_tables(path: Path, key: str) -> dict[str, Any]:
    """The tables of a file of demonstrations."""
    if not path.is_file():
        raise ConfigError(f"{key}.demonstrations: expected a file, found none at {path}; correct the path")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: expected TOML, found an error: {error}; mend that line") from error


def check_pool(path: Path, count: int, least: int) -> None:
    """A call's demonstrations differ, so the pool must hold as many."""
    if count < least:
        raise ConfigError(
            f"{path}: expected at least {least} demonstrations, found {count}; add some, or ask for fewer"
        )


def facts(config: TextConfig) -> dict[str, Any]:
    """What decides the scenarios beside the topics; not how many, so that more may be asked for later."""
    chosen = config.scenarios
    pool = load_demonstrations(chosen.demonstrations, chosen.demonstrations_per_call)
    demonstrations = [[one.topic, one.scenario, one.requirement] for one in pool]
    table = chosen.model_dump(mode="json", exclude={"demonstrations", "count"})
    return table | {"demonstrations": demonstrations}


def units(config: TextConfig) -> list[list[Any]]:
    """The calls of every unit, each its number, its requirement and its topics: what decides the unit."""
    found = _read(config.output / topics.NAME / f"{topics.NAME}.parquet", _stamp(config, topics.NAME))
    if not found:
        raise ConfigError("topics: expected some, all were left out; see rejects.parquet in the folder of the topics")
    per_call, count = config.scenarios.topics_per_call, config.scenarios.count
    starts = range(0, count, per_call)
    calls = [
        [number, _requirement(config, number), _topics(config, found, start, min(start + per_call, count))]
        for number, start in enumerate(starts)
    ]
    size = config.scenarios.calls_per_unit
    return [calls[start : start + size] for start in range(0, len(calls), size)]


def read_rows(config: TextConfig, stage: str) -> list[Row]:
    """The finished dataset of a stage."""
    return _read(config.output / stage / f"{stage}.parquet", _stamp(config, stage))


def call_request(config: TextConfig, call: Sequence[Any]) -> Request:
    """The request of one call."""
    number, requirement, chosen = call
    wanted = config.scenarios
    pool = load_demonstrations(wanted.demonstrations, wanted.demonstrations_per_call)
    rng = generator(config.seed, NAME, "demonstrations", number)
    shown = [pool[int(place)] for place in rng.choice(len(pool), wanted.demonstrations_per_call, replace=False)]
    messages = scenario_messages([topic for _, topic in chosen], Requirement(requirement), shown)
    return make_request(config, NAME, messages, number)


async def write_unit(config: TextConfig, number: int, ask: Ask) -> UnitResult:
    """All calls of a unit at once."""
    calls = _units(text_json(config), _stamp(config, topics.NAME))[number]
    return joined(await together(_write_call(config, call, ask) for call in calls))


async def _write_call(config: TextConfig, call: Sequence[Any], ask: Ask) -> UnitResult:
    number, requirement, chosen = call
    ids = [f"{number * config.scenarios.topics_per_call + nth:08x}" for nth in range(len(chosen))]
    result = UnitResult()
    try:
        answer = await ask(call_request(config, call))
    except CallFailed as error:
        for key, (_, topic) in zip(ids, chosen, strict=True):
            result.add(rejected(NAME, key, error.reason, error.message, topic))
        return result
    # Of a number that comes twice the first counts.
    listed = dict(reversed(read_numbered(answer.text)))
    for nth, (key, (meta_topic, topic)) in enumerate(zip(ids, chosen, strict=True), 1):
        result.add(_scenario(config, key, meta_topic, topic, requirement, listed.get(nth)))
    return result


def _scenario(
    config: TextConfig, key: str, meta_topic: str, topic: str, requirement: str, text: str | None
) -> Row | LeftOut:
    if text is None:
        return rejected(NAME, key, "scenario_missing", "the answer has no line of this number", topic)
    scenario = text.partition("Scene:")[2].strip() or text
    fault = scenario_fault(config, scenario)
    if fault is not None:
        return rejected(NAME, key, fault, scenario[:200], topic)
    return dict(zip(SCHEMA.names, (key, meta_topic, topic, requirement, scenario), strict=True))


def scenario_fault(config: TextConfig, scenario: str) -> str | None:
    """The reason why a text is no scenario, or None."""
    words = len(scenario.split())
    if words < config.scenarios.min_words:
        return "scenario_too_short"
    if words > config.scenarios.max_words:
        return "scenario_too_long"
    if famous_name(scenario, config.famous_names):
        return "famous_name"
    return None


def sift(config: TextConfig, rows: Iterable[Row]) -> Iterator[Row | Filtered]:
    """The rows again: scenarios of one topic may be alike, their dialogues may not."""
    yield from rows


def _requirement(config: TextConfig, number: int) -> str:
    weights = config.scenarios.requirements
    names = sorted(name for name, weight in weights.items() if weight > 0)
    total = sum(weights[name] for name in names)
    shares = [weights[name] / total for name in names]
    return str(names[int(generator(config.seed, NAME, "requirement", number).choice(len(names), p=shares))])


def _topics(config: TextConfig, found: Sequence[Row], start: int, stop: int) -> list[list[str]]:
    rows = [found[balanced(range(len(found)), place, config.seed, NAME)] for place in range(start, stop)]
    return [[row["meta_topic"], row["topic"]] for row in rows]


def _stamp(config: TextConfig, stage: str) -> tuple[int, int]:
    """What changes when a file does, so that one that was read is not read again."""
    found = (config.output / stage / f"{stage}.parquet").stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=4)
def _read(path: Path, stamp: tuple[int, int]) -> list[Row]:
    return pq.read_table(path).to_pylist()


@functools.lru_cache(maxsize=2)
def _units(config: str, stamp: tuple[int, int]) -> list[list[Any]]:
    return units(TextConfig.model_validate_json(config))
