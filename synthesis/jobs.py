"""The text stages as jobs: units of fixed borders, a ledger, rejects, and one file of rows a stage.

``OUTPUT/<stage>/`` holds ``shards/`` and ``rejects/`` of the units, their ``ledger/``, and what is made of all of them, in
the order of the units: ``<stage>.parquet``, ``rejects.parquet``, ``filtered.parquet`` and, last, ``report.json``, in which
``inputs = written + filtered + rejected``. Nothing of it holds a time, and nothing depends on workers.

A unit is done when its entry says so and was made from the same: the settings of its stage and its own inputs. So a run
that was killed, a longer list or topics that changed cost the units they touch, and of these only calls that were never
answered (:mod:`synthesis.calls_store`).
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.samples import Filtered
from shards.ledger import Entry, commit_entry, fold_ledger, read_entries, read_entry, unit_name
from shards.left_out import join_parts, part_path
from shards.manifest import ShardEntry, fingerprint
from shards.output_lock import remove_temporaries
from shards.writer import commit_bytes, commit_table, file_sha256
from synthesis import dialogues_stage, scenarios, topics
from synthesis.calls import together
from synthesis.config import TextConfig
from synthesis.units import Ask, Row, UnitResult
from tokenize_jobs.ledger import check_facts, commit_facts
from tokenize_jobs.rejects import check_budget, count_reasons, left_out_table

STAGES: dict[str, ModuleType] = {module.NAME: module for module in (topics, scenarios, dialogues_stage)}
"""In the order they run. Each has ``NAME``, ``SCHEMA``, ``KEY``, ``facts``, ``units``, ``write_unit`` and ``sift``."""
VERSION = 1
"""Raised whenever the same settings and answers would give other rows."""
REPORT_NAME = "report.json"
CALL_FAILED = "call_"
"""What reasons of rejects begin with whose call got no answer: those that trying again may mend."""

RunUnits = Callable[[TextConfig, "StagePlan"], Iterator[int]]
"""Does units of a stage, in any order, and says which is done."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage as its inputs are now: the fingerprint of every unit, and which of them are to do."""

    stage: str
    prints: list[str]
    missing: list[int]


def plan_stage(config: TextConfig, stage: str, *, retry: bool = False) -> StagePlan:
    """Which units there are and which are missing.

    Args:
        retry: units with calls that got no answer count as missing.

    Raises:
        FingerprintMismatch: the folder holds units made with other settings.
    """
    facts = stage_facts(config, stage)
    folder = config.output / stage
    check_facts(folder, facts)
    prints = [fingerprint([facts, inputs]) for inputs in STAGES[stage].units(config)]
    done = {entry.number for entry in read_entries(folder) if _is_done(config, stage, entry, prints, retry=retry)}
    return StagePlan(stage, prints, [number for number in range(len(prints)) if number not in done])


def stage_facts(config: TextConfig, stage: str) -> dict[str, Any]:
    """The settings that decide a stage's rows, its inputs apart."""
    llm = config.llm.model_dump(
        mode="json", include={"kind", "model", "temperature", "top_p", f"max_{stage.removesuffix('s')}_tokens"}
    )
    names = file_sha256(config.famous_names) if config.famous_names else ""
    return {
        "version": VERSION,
        "seed": config.seed,
        "llm": llm,
        "famous_names": names,
        stage: STAGES[stage].facts(config),
    }


def run_stage(config: TextConfig, stage: str, run_units: RunUnits, *, retry: bool = False) -> dict[str, Any]:
    """Do what is missing of a stage and put its dataset together; its report.

    Raises:
        RejectBudgetExceeded: too many of the inputs were rejected.
        BudgetSpent: the calls cost as much as they may.
    """
    folder = config.output / stage
    plan = plan_stage(config, stage, retry=retry)
    commit_facts(folder, stage_facts(config, stage))
    remove_temporaries(folder)
    for number in tqdm(run_units(config, plan), total=len(plan.missing), desc=stage, disable=None):
        check_unit(config, stage, number)
    return finish_stage(config, plan)


def check_unit(config: TextConfig, stage: str, number: int) -> None:
    """Stop before the next thousand calls when all that a whole unit gave were failures.

    Raises:
        RejectBudgetExceeded: see ``run_share``.
    """
    entry = read_entry(config.output / stage, number)
    if entry is not None:
        where = f"{config.output / stage}, {entry.unit}"
        check_budget(entry.rejected, entry.inputs, share=config.run_share, where=where, key="run_share")


async def do_unit(config: TextConfig, stage: str, number: int, expected: str, ask: Ask) -> None:
    """Write one unit and commit it."""
    commit_unit(config, stage, number, expected, await STAGES[stage].write_unit(config, number, ask))


def commit_unit(config: TextConfig, stage: str, number: int, expected: str, result: UnitResult) -> None:
    """Commit the files of a unit, and then its entry."""
    folder, unit = config.output / stage, unit_name(number)
    writer = f".{platform.node()}.{os.getpid()}"
    rejected = count_reasons(item for item in result.left_out if not isinstance(item, Filtered))
    filtered = count_reasons(item for item in result.left_out if isinstance(item, Filtered))
    left_out_sha256 = ""
    if result.left_out:
        table = left_out_table(result.left_out, unit)
        left_out_sha256 = commit_table(part_path(folder, unit), table, writer=writer)
    else:
        part_path(folder, unit).unlink(missing_ok=True)
    path = folder / "shards" / f"{unit}.parquet"
    sha256 = commit_table(path, pa.Table.from_pylist(result.rows, schema=STAGES[stage].SCHEMA), writer=writer)
    shard = ShardEntry(f"shards/{unit}.parquet", len(result.rows), path.stat().st_size, sha256)
    entry = Entry(
        unit, expected, stage, 0, 0, result.inputs, result.inputs, len(result.rows), filtered, rejected, shard=shard,
        left_out_sha256=left_out_sha256,
    )  # fmt: skip
    commit_entry(folder, entry, writer=writer)


def finish_stage(config: TextConfig, plan: StagePlan) -> dict[str, Any]:
    """Put a stage's dataset together from its units; nothing is done again when it is there.

    Raises:
        RejectBudgetExceeded: too many of the inputs were rejected.
    """
    module, folder = STAGES[plan.stage], config.output / plan.stage
    entries = [entry for entry in read_entries(folder) if entry.number < len(plan.prints)]
    made = [[entry.fingerprint, entry.shard and entry.shard.sha256, entry.left_out_sha256] for entry in entries]
    expected = fingerprint([made, plan.stage, VERSION])
    finished = read_report(config, plan.stage)
    if finished is not None and finished["fingerprint"] == expected and (folder / f"{plan.stage}.parquet").is_file():
        return finished
    (folder / REPORT_NAME).unlink(missing_ok=True)
    shards = [folder / entry.shard.path for entry in entries if entry.shard]
    rows = (row for path in shards for row in pq.read_table(path).to_pylist())
    kept: list[Row] = []
    copies: list[Filtered] = []
    for item in module.sift(config, rows):
        if isinstance(item, Filtered):
            copies.append(item)
        else:
            kept.append(item)
    sha256 = commit_table(folder / f"{plan.stage}.parquet", pa.Table.from_pylist(kept, schema=module.SCHEMA))
    commit_table(part_path(folder, "all"), left_out_table(copies, "all"))
    parts = [part_path(folder, entry.unit) for entry in entries if entry.left_out_sha256]
    join_parts([*parts, part_path(folder, "all")], folder)
    report = {"stage": plan.stage, "fingerprint": expected, **_sums(entries, len(kept), copies), "sha256": sha256}
    where = str(folder)
    check_budget(report["rejected"], report["inputs"], share=config.run_share, where=where, key="run_share")
    fold_ledger(folder)
    commit_bytes(folder / REPORT_NAME, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    return report


def read_report(config: TextConfig, stage: str) -> dict[str, Any] | None:
    """The stored report of a stage, or None."""
    path = config.output / stage / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def units_in_this_process(ask: Ask, loop: asyncio.AbstractEventLoop, *, at_once: int = 4) -> RunUnits:
    """Units done here, a few at a time, without Ray."""

    def run(config: TextConfig, plan: StagePlan) -> Iterator[int]:
        for start in range(0, len(plan.missing), at_once):
            chosen = plan.missing[start : start + at_once]
            loop.run_until_complete(_together(config, plan, chosen, ask))
            yield from chosen

    return run


async def _together(config: TextConfig, plan: StagePlan, chosen: Sequence[int], ask: Ask) -> None:
    await together(do_unit(config, plan.stage, number, plan.prints[number], ask) for number in chosen)


def _sums(entries: Sequence[Entry], written: int, copies: Sequence[Filtered]) -> dict[str, Any]:
    """Inputs and what became of them."""
    filtered, rejected = Counter[str](), Counter[str]()
    for entry in entries:
        filtered.update(entry.filtered)
        rejected.update(entry.rejected)
    filtered.update(count_reasons(copies))
    inputs = sum(entry.inputs for entry in entries)
    assert inputs == written + filtered.total() + rejected.total(), "inputs = written + filtered + rejected"
    sums = {"inputs": inputs, "written": written}
    return sums | {"filtered": dict(sorted(filtered.items())), "rejected": dict(sorted(rejected.items()))}


def _is_done(config: TextConfig, stage: str, entry: Entry, prints: Sequence[str], *, retry: bool) -> bool:
    folder = config.output / stage
    if entry.number >= len(prints) or entry.fingerprint != prints[entry.number] or entry.shard is None:
        return False
    path = folder / entry.shard.path
    if not path.is_file() or path.stat().st_size != entry.shard.num_bytes:
        return False
    if entry.left_out_sha256 and not part_path(folder, entry.unit).is_file():
        return False
    return not (retry and any(reason.startswith(CALL_FAILED) for reason in entry.rejected))
