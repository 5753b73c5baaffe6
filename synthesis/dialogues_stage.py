"""Scenarios into dialogues: three demonstrations a call, then every rule, then near copies out.

Source: AnyGPT appendix D, figure 7. Leaves ``OUTPUT/dialogues/dialogues.parquet`` (:mod:`synthesis.dialogues`). A dialogue
has the id of its scenario.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from configs.load import Config, validate
from pipeline.sample_corpora.draws import generator
from pipeline.samples import Filtered
from synthesis.calls import CallFailed, Request, together
from synthesis.config import Requirement, TextConfig
from synthesis.dialogues import DIALOGUE_SCHEMA, DIALOGUES_FOLDER, DialogueTurn
from synthesis.prompts import DialogueDemonstration, dialogue_messages, format_dialogue
from synthesis.scenarios import check_pool, read_rows, read_tables
from synthesis.similarity import near_copies
from synthesis.units import Ask, LeftOut, Row, UnitResult, filtered, make_request, rejected
from synthesis.validation import SHINGLE_WORDS, check_dialogue

NAME = "dialogues"
assert NAME == DIALOGUES_FOLDER
SCHEMA = DIALOGUE_SCHEMA
KEY = "dialogue_id"


class _Turn(Config):
    role: Literal["user", "assistant"]
    text: str = Field(min_length=1)


class _Demonstration(Config):
    topic: str = Field(min_length=1)
    requirement: Requirement
    scenario: str = Field(min_length=1)
    turns: tuple[_Turn, ...] = Field(min_length=2)


class _Demonstrations(Config):
    demonstration: tuple[_Demonstration, ...] = Field(min_length=1)


@functools.lru_cache(maxsize=4)
def load_demonstrations(path: Path, least: int) -> tuple[DialogueDemonstration, ...]:
    """The pool that calls draw from.

    Raises:
        ConfigError: no such file, or fewer than a call needs.
    """
    found = validate(read_tables(path, NAME), _Demonstrations, where=str(path)).demonstration
    check_pool(path, len(found), least)
    return tuple(
        DialogueDemonstration(
            one.topic, one.scenario, one.requirement, tuple(DialogueTurn(turn.role, turn.text) for turn in one.turns)
        )
        for one in found
    )


def facts(config: TextConfig) -> dict[str, Any]:
    """What decides the dialogues beside the scenarios; not how many, so that more may be asked for later."""
    chosen = config.dialogues
    pool = load_demonstrations(chosen.demonstrations, chosen.demonstrations_per_call)
    demonstrations = [[one.topic, one.scenario, one.requirement, format_dialogue(one.turns)] for one in pool]
    table = chosen.model_dump(mode="json", exclude={"demonstrations", "count"})
    return table | {"demonstrations": demonstrations}


def units(config: TextConfig) -> list[list[Row]]:
    """The scenarios of every unit."""
    rows = read_rows(config, "scenarios")[: config.dialogues.count]
    size = config.dialogues.calls_per_unit
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def call_request(config: TextConfig, row: Row) -> tuple[Request, list[DialogueDemonstration]]:
    """The request for one scenario, and the demonstrations it shows."""
    wanted = config.dialogues
    pool = load_demonstrations(wanted.demonstrations, wanted.demonstrations_per_call)
    rng = generator(config.seed, NAME, "demonstrations", row["scenario_id"])
    shown = [pool[int(place)] for place in rng.choice(len(pool), wanted.demonstrations_per_call, replace=False)]
    messages = dialogue_messages(row["topic"], row["scenario"], Requirement(row["requirement"]), shown, wanted)
    return make_request(config, NAME, messages, row["scenario_id"]), shown


async def write_unit(config: TextConfig, number: int, ask: Ask) -> UnitResult:
    """All calls of a unit at once."""
    size = config.dialogues.calls_per_unit
    rows = read_rows(config, "scenarios")[: config.dialogues.count][number * size : (number + 1) * size]
    result = UnitResult()
    for item in await together(_write_dialogue(config, row, ask) for row in rows):
        result.add(item)
    return result


async def _write_dialogue(config: TextConfig, row: Row, ask: Ask) -> Row | LeftOut:
    key = row["scenario_id"]
    request, shown = call_request(config, row)
    try:
        answer = await ask(request)
    except CallFailed as error:
        return rejected(NAME, key, error.reason, error.message, row["topic"])
    checked = check_dialogue(
        answer.text,
        Requirement(row["requirement"]),
        config.dialogues,
        demonstrations=[format_dialogue(one.turns) for one in shown],
        famous_names=config.famous_names,
    )
    if checked.faults:
        reasons = "; ".join(f"{fault.reason}: {fault.message}" for fault in checked.faults)
        return rejected(NAME, key, checked.faults[0].reason, reasons[:1000], row["topic"])
    return {
        "dialogue_id": key,
        **{name: row[name] for name in ("meta_topic", "topic", "requirement", "scenario")},
        "turns": [{"role": turn.role, "text": turn.text} for turn in checked.turns],
    }


def sift(config: TextConfig, rows: Iterable[Row]) -> Iterator[Row | Filtered]:
    """The rows again, near copies of earlier ones replaced by why they are left out."""
    listed = list(rows)
    texts = [dialogue_text(row["turns"]) for row in listed]
    found = near_copies(texts, threshold=config.dialogues.similarity, words=SHINGLE_WORDS)
    for row, copy in zip(listed, found, strict=True):
        if copy is None:
            yield row
        else:
            of = f"like {listed[copy[0]][KEY]} ({copy[1]:.2f})"
            yield filtered(NAME, row[KEY], "near_copy", of, row["topic"])


def dialogue_text(turns: Sequence[Row]) -> str:
    """What near copies are looked for in."""
    return "\n".join(turn["text"] for turn in turns)
