"""Meta-topics into topics: rounds that see the rounds before, near copies and bad answers left out by name."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synthesis.calls import CallFailed, Request
from synthesis.config import TextConfig
from synthesis.topics import meta_topics
from tests.synthesis.stage_asks import Asked, numbered, requested, run_stage, stage_config

WORDS = ("amber", "brisk", "cedar", "dune", "ember", "fjord", "grove", "harbour", "island", "jasper")


def distinct(request: Request) -> str:
    """Ten topics that no other round and no other meta-topic gives."""
    theme = request.messages[0].content.splitlines()[0].removeprefix("Theme: ")
    round_number = sum(message.role == "assistant" for message in request.messages)
    tail = "".join(word[:4] for word in theme.lower().split())
    return numbered([f"{word}{tail} picture{round_number}{tail} {WORDS[nth - 1]}" for nth, word in enumerate(WORDS)])


def topics_of(config: TextConfig) -> list[dict[str, str]]:
    return pq.read_table(config.output / "topics/topics.parquet").to_pylist()


def test_every_round_of_every_meta_topic_gives_its_topics_in_order(tmp_path: Path, repository: Path) -> None:
    """3 x 2 x 10, each once, by meta-topic, then round, then line."""
    config = stage_config(tmp_path, repository)
    report = run_stage(config, "topics", Asked(distinct))
    rows = topics_of(config)
    assert (report["inputs"], report["written"]) == (60, 60)
    assert Counter(row["meta_topic"] for row in rows) == dict.fromkeys(meta_topics(config), 20)
    assert [row["topic_id"] for row in rows] == sorted({row["topic_id"] for row in rows})


def test_a_later_round_is_shown_what_the_rounds_before_it_gave(tmp_path: Path, repository: Path) -> None:
    """Round k holds k answers, word for word, and asks for others."""
    config = stage_config(tmp_path, repository, topics={"rounds": 3})
    asked = Asked(distinct)
    run_stage(config, "topics", asked)
    for name in meta_topics(config):
        rounds = [one for one in asked.requests if one.messages[0].content.startswith(f"Theme: {name}\n")]
        assert [sum(m.role == "assistant" for m in one.messages) for one in rounds] == [0, 1, 2]
        for one, later in itertools.pairwise(rounds):
            assert later.messages[: len(one.messages)] == one.messages
            assert later.messages[len(one.messages)].content == distinct(one)
            assert "none like those before" in later.messages[-1].content


def test_near_copies_are_filtered_and_the_first_of_them_stays(tmp_path: Path, repository: Path) -> None:
    """The same list from every call: one of each is kept, 50 are filtered, and each says what it is like."""
    config = stage_config(tmp_path, repository)
    report = run_stage(config, "topics", Asked(lambda _: numbered([f"{word} in our street" for word in WORDS])))
    assert report["written"] == 10
    assert report["filtered"] == {"near_copy": 50}
    assert report["rejected"] == {}
    first = topics_of(config)
    assert {row["meta_topic"] for row in first} == {meta_topics(config)[0]}
    messages = pq.read_table(tmp_path / "topics/filtered.parquet")
    assert set(messages["reason"].to_pylist()) == {"near_copy"}
    known = {row["topic_id"] for row in first}
    text = " ".join(str(row) for row in messages.to_pylist())
    assert set(re.findall(r"is like (\S+) \(1\.00\)", text)) == known


PLANTED = {
    "topic_list_missing": ("I would rather not list anything.", 1),
    "topic_too_long": (numbered(["a poster " * 8 + "for a fair"]), 1),
    "topic_too_short": (numbered(["1234 5678"]), 1),
    "famous_name": (numbered(["a portrait of Taylor Swift for my wall"]), 1),
    "more_than_asked": (numbered([f"{one}{two} day" for one in WORDS[:4] for two in WORDS[:3]]), 2),
}


@pytest.mark.parametrize("reason", PLANTED)
def test_a_bad_answer_is_left_out_by_its_reason(reason: str, tmp_path: Path, repository: Path) -> None:
    """One bad answer among good ones costs its own items, and nothing else."""
    config = stage_config(tmp_path, repository, topics={"rounds": 1})
    second = f"Theme: {meta_topics(config)[1]}\n"
    answer, count = PLANTED[reason]
    report = run_stage(
        config,
        "topics",
        Asked(lambda one: answer if one.messages[0].content.startswith(second) else distinct(one)),
    )
    left_out = Counter(report["rejected"]) + Counter(report["filtered"])
    assert left_out == {reason: count}
    assert report["inputs"] == report["written"] + count
    assert report["written"] == 20 + (10 if reason == "more_than_asked" else 0)


def test_a_call_without_an_answer_costs_its_round_only(tmp_path: Path, repository: Path) -> None:
    """The next round has nothing to go on from, so it asks as the first did, and is answered."""
    config = stage_config(tmp_path, repository)
    first = f"Theme: {meta_topics(config)[0]}\n"
    prompts: list[tuple[str, ...]] = []

    def fails_once(request: Request) -> str:
        if request.messages[0].content.startswith(first):
            prompts.append(tuple(message.content for message in request.messages))
            if len(prompts) == 1:
                raise CallFailed("call_timeout", "planted")
        return distinct(request)

    report = run_stage(config, "topics", Asked(fails_once))
    assert report["rejected"] == {"call_timeout": 1}
    assert (report["inputs"], report["written"]) == (51, 50)
    assert len(prompts) == 2
    assert prompts[0] == prompts[1]


def test_the_seed_decides_the_requests_and_the_answers_the_files(tmp_path: Path, repository: Path) -> None:
    """Equal seeds, equal calls and equal topics; another seed, other calls."""
    seeds = {"a": 1, "b": 1, "c": 2}
    configs = [stage_config(tmp_path / name, repository, seed=seed) for name, seed in seeds.items()]
    keys = [requested(config, "topics", distinct) for config in configs]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
    assert (tmp_path / "a/topics/topics.parquet").read_bytes() == (tmp_path / "b/topics/topics.parquet").read_bytes()
