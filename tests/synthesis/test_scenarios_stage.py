"""Topics into scenarios: ten topics, five demonstrations and one requirement a call; bad answers left out by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError
from synthesis import scenarios
from synthesis.calls import CallFailed, Request
from synthesis.config import Requirement, TextConfig
from synthesis.prompts import REQUIREMENT_TEXTS, read_numbered
from tests.synthesis.stage_asks import Asked, numbered, requested, run_stage, stage_config
from tests.synthesis.test_topics_stage import distinct


def listed(request: Request) -> list[str]:
    """The topics that a prompt asks about."""
    return [text for _, text in read_numbered(request.messages[0].content.rpartition("\nTopics:\n")[2])]


def scenes(request: Request) -> str:
    """One scene a topic."""
    return numbered(
        [f"Somebody sits at home, thinks about {topic} and asks for help with it." for topic in listed(request)]
    )


def with_topics(output: Path, repository: Path, **changes: Any) -> TextConfig:
    """A config whose 60 topics are there."""
    config = stage_config(output, repository, **changes)
    run_stage(config, "topics", Asked(distinct))
    return config


def rows_of(config: TextConfig) -> list[dict[str, str]]:
    return pq.read_table(config.output / "scenarios/scenarios.parquet").to_pylist()


def test_a_call_has_ten_topics_five_demonstrations_and_one_requirement(tmp_path: Path, repository: Path) -> None:
    """45 scenarios: four calls of ten and one of five; the demonstrations differ, and come from the pool."""
    config = with_topics(tmp_path, repository, scenarios={"count": 45})
    asked = Asked(scenes)
    report = run_stage(config, "scenarios", asked)
    assert (report["inputs"], report["written"]) == (45, 45)
    assert sorted(len(listed(one)) for one in asked.requests) == [5, 10, 10, 10, 10]
    pool = {one.scenario for one in scenarios.load_demonstrations(config.scenarios.demonstrations, 5)}
    shown = [{scene for scene in pool if f"\nScene: {scene}" in one.messages[0].content} for one in asked.requests]
    assert [len(found) for found in shown] == [5] * 5
    assert len({frozenset(found) for found in shown}) > 1, "the same five every time"
    for one in asked.requests:
        told = one.messages[0].content.partition("In every scene you write now, ")[2]
        assert sum(told.startswith(text) for text in REQUIREMENT_TEXTS.values()) == 1


def test_every_topic_is_used_before_one_comes_again_and_rows_name_what_was_asked(
    tmp_path: Path, repository: Path
) -> None:
    """60 topics in 150 places: each twice, half of them a third time; the row has the call's topic and requirement."""
    config = with_topics(tmp_path, repository, scenarios={"count": 150})
    asked = Asked(scenes)
    run_stage(config, "scenarios", asked)
    rows = rows_of(config)
    counts = Counter(row["topic"] for row in rows)
    assert len(counts) == 60
    assert sorted(counts.values()) == [2] * 30 + [3] * 30
    assert len({row["scenario_id"] for row in rows}) == 150
    told = {
        topic: next(name for name, text in REQUIREMENT_TEXTS.items() if f"now, {text}" in one.messages[0].content)
        for one in asked.requests
        for topic in listed(one)
        if counts[topic] == 1
    }
    assert all(row["requirement"] == told.get(row["topic"], row["requirement"]) for row in rows)
    assert all(row["topic"] in row["scenario"] for row in rows)


def test_requirements_come_as_often_as_they_weigh(tmp_path: Path, repository: Path) -> None:
    """2,000 calls of one topic: each share within four standard deviations; a weight of 0 never comes."""
    weights = {
        Requirement.USER_SHARES_MUSIC: 5.0,
        Requirement.ASKS_FOR_IMAGE: 3.0,
        Requirement.ASKS_FOR_MUSIC: 2.0,
        Requirement.USER_GIVES_IMAGE: 0.0,
    }
    wanted = {"count": 2000, "topics_per_call": 1, "requirements": weights}
    config = with_topics(tmp_path, repository, scenarios=wanted)
    counts = Counter(call[1] for unit in scenarios.units(config) for call in unit)
    assert counts.total() == 2000
    assert counts[Requirement.USER_GIVES_IMAGE] == 0
    for requirement, weight in weights.items():
        share = weight / 10
        assert abs(counts[requirement] / 2000 - share) <= 4 * (share * (1 - share) / 2000) ** 0.5


def test_shared_music_is_weighted_up_by_default(tmp_path: Path, repository: Path) -> None:
    """Twice as heavy as any other, as the paper has it."""
    weights = stage_config(tmp_path, repository).scenarios.requirements
    others = {weight for name, weight in weights.items() if name is not Requirement.USER_SHARES_MUSIC}
    assert len(weights) == 4
    assert others == {weights[Requirement.USER_SHARES_MUSIC] / 2}


PLANTED = {
    "scenario_missing": lambda lines: [*lines[:3], *lines[4:]],
    "scenario_too_short": lambda lines: [*lines[:3], "4. Somebody asks.", *lines[4:]],
    "scenario_too_long": lambda lines: [*lines[:3], "4. " + "and then somebody asks " * 40, *lines[4:]],
    "famous_name": lambda lines: [*lines[:3], "4. Somebody wants a song by Taylor Swift for a rainy day.", *lines[4:]],
}


@pytest.mark.parametrize("reason", PLANTED)
def test_a_bad_line_is_left_out_by_its_reason_and_the_other_nine_stay(
    reason: str, tmp_path: Path, repository: Path
) -> None:
    """Of the fourth topic of every call."""
    config = with_topics(tmp_path, repository)
    report = run_stage(config, "scenarios", Asked(lambda one: "\n".join(PLANTED[reason](scenes(one).splitlines()))))
    assert report["rejected"] == {reason: 4}
    assert (report["inputs"], report["written"]) == (40, 36)


def test_garbage_and_a_failed_call_reject_the_topics_of_their_call(tmp_path: Path, repository: Path) -> None:
    """Ten rejects each, by name; a number that comes twice counts once."""
    config = with_topics(tmp_path, repository)
    seen: list[str] = []

    def answer(request: Request) -> str:
        seen.append(request.key)
        if len(seen) == 1:
            return "<html>502</html>"
        if len(seen) == 2:
            raise CallFailed("call_http_500", "planted")
        return scenes(request) + "\n" + "1. Another scene of the same number, which nobody has asked for today."

    report = run_stage(config, "scenarios", Asked(answer))
    assert report["rejected"] == {"call_http_500": 10, "scenario_missing": 10}
    assert report["written"] == 20
    assert not any("nobody has asked" in row["scenario"] for row in rows_of(config))


def test_the_seed_decides_and_no_topics_are_an_error(tmp_path: Path, repository: Path) -> None:
    """Equal seeds give equal files, another seed other calls; where every topic was left out, that is said."""
    seeds = {"a": 1, "b": 1, "c": 2}
    configs = [with_topics(tmp_path / name, repository, seed=seed) for name, seed in seeds.items()]
    keys = [requested(config, "scenarios", scenes) for config in configs]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
    files = [tmp_path / name / "scenarios/scenarios.parquet" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    config = stage_config(tmp_path / "none", repository)
    run_stage(config, "topics", Asked(lambda _: numbered(["12 34"])))
    with pytest.raises(ConfigError, match="all were left out"):
        run_stage(config, "scenarios", Asked(scenes))
