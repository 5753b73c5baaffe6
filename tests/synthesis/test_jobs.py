"""Killed anywhere and run again: the same files, no answered call repeated, no dialogue twice; inputs all accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synthesis import jobs
from synthesis.calls import Answer, CallFailed, CallKeeper, Request
from synthesis.calls_keeper import calls_folder, open_keeper
from synthesis.calls_store import AnswerStore
from synthesis.config import DialoguesConfig, ScenariosConfig, TextConfig, TopicsConfig
from synthesis.dialogues import dialogues_path, read_dialogues
from synthesis.llm_rules import RulesWriter


def small(output: Path, repository: Path) -> TextConfig:
    """Three meta-topics, 40 dialogues, units of a few calls."""
    lists = repository / "configs/synthesis"
    return TextConfig(
        output=output,
        workers=0,
        topics=TopicsConfig(
            meta_topics=lists / "meta_topics.txt", num_meta_topics=3, rounds=2, per_round=10, meta_topics_per_unit=1
        ),
        scenarios=ScenariosConfig(demonstrations=lists / "scenarios.toml", count=40, calls_per_unit=1),
        dialogues=DialoguesConfig(demonstrations=lists / "dialogues.toml", calls_per_unit=5, languages=()),
    )


def run(config: TextConfig, keeper: CallKeeper, *, at_once: int = 4, retry: bool = False) -> dict[str, dict]:
    """All stages in this process; closes the keeper's store whatever happens."""
    loop = asyncio.new_event_loop()
    try:
        units = jobs.units_in_this_process(keeper.ask, loop, at_once=at_once)
        return {stage: jobs.run_stage(config, stage, units, retry=retry) for stage in jobs.STAGES}
    finally:
        loop.close()
        keeper.store.close()


def files(config: TextConfig) -> dict[str, str]:
    """Digest of every file of the stages."""
    found = (path for stage in jobs.STAGES for path in (config.output / stage).rglob("*") if path.is_file())
    return {str(path.relative_to(config.output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class Counting:
    """The rules, counting what they are asked, and failing where told."""

    def __init__(self, config: TextConfig, *, fails: frozenset[int] = frozenset()) -> None:
        self._rules, self._fails, self.asked = RulesWriter(config), fails, Counter[str]()

    async def write(self, request: Request) -> Answer:
        self.asked[request.key] += 1
        if sum(self.asked.values()) in self._fails:
            raise CallFailed("call_http_500", "planted")
        return await self._rules.write(request)

    async def close(self) -> None:
        """Nothing is open."""


def test_a_whole_run_accounts_for_everything_and_units_at_once_change_no_byte(tmp_path: Path, repository: Path):
    """One unit at a time or four: equal files; inputs = written + filtered + rejected; no dialogue twice."""
    one, four = small(tmp_path / "one", repository), small(tmp_path / "four", repository)
    reports = run(one, open_keeper(one), at_once=1)
    assert run(four, open_keeper(four), at_once=4) == reports
    assert files(one) == files(four)
    for report in reports.values():
        left_out = sum(report["filtered"].values()) + sum(report["rejected"].values())
        assert report["inputs"] == report["written"] + left_out
    dialogues = list(read_dialogues(dialogues_path(one.output)))
    assert len({one.dialogue_id for one in dialogues}) == len(dialogues) == reports["dialogues"]["written"] >= 35
    assert reports["topics"]["written"] == 60


def test_failed_calls_are_rejects_and_only_they_are_asked_again(tmp_path: Path, repository: Path):
    """A failed call rejects its items by name; asked again, the whole is that of a run without failures."""
    config, calm = small(tmp_path / "a", repository), small(tmp_path / "b", repository)
    writer = Counting(config, fails=frozenset({12, 20, 33}))
    reports = run(config, CallKeeper(writer, AnswerStore(calls_folder(config))))
    rejected = sum((Counter(report["rejected"]) for report in reports.values()), Counter())
    assert rejected["call_http_500"] >= 3
    table = pq.read_table(config.output / "dialogues/rejects.parquet")
    assert table["reason"].to_pylist().count("call_http_500") == reports["dialogues"]["rejected"]["call_http_500"]
    again = Counting(config)
    run(config, CallKeeper(again, AnswerStore(calls_folder(config))), retry=True)
    run(calm, open_keeper(calm))
    shared = [name for name in files(calm) if name.endswith(".parquet") and name.count("/") == 1]
    assert all(files(config)[name] == files(calm)[name] for name in shared)
    assert max((writer.asked + again.asked).values()) == 2
    assert all(again.asked[key] == 1 for key in again.asked)


def test_a_longer_list_adds_to_what_is_there(tmp_path: Path, repository: Path):
    """More scenarios cost only what is new."""
    config = small(tmp_path, repository)
    run(config, open_keeper(config))
    longer = config.model_copy(update={"scenarios": config.scenarios.model_copy(update={"count": 60})})
    writer = Counting(config)
    run(longer, CallKeeper(writer, AnswerStore(calls_folder(config))))
    assert sum(writer.asked.values()) == 2 + 20


@pytest.mark.slow
def test_kill_9_and_again_gives_the_same_files_and_repeats_no_answered_call(tmp_path: Path, repository: Path):
    """Killed at different points until it ends by itself: as if nothing had happened."""
    config, calm = small(tmp_path / "killed", repository), small(tmp_path / "calm", repository)
    program = (
        "import sys, synthesis.llm_rules as rules, time\n"
        "from synthesis.cli import run_text\n"
        "from synthesis.config import SynthesisConfig\n"
        "write = rules.RulesWriter.write\n"
        "async def slow(self, request):\n"
        "    time.sleep(0.02)\n"
        f"    open({str(tmp_path / 'asked')!r}, 'a').write(request.key + '\\n')\n"
        "    return await write(self, request)\n"
        "rules.RulesWriter.write = slow\n"
        "run_text(SynthesisConfig.model_validate_json(sys.argv[1]))\n"
    )
    for delay_s in (0.3, 0.6, 0.9, None):
        answered = set(_answered(config))
        before = (tmp_path / "asked").read_text().split() if (tmp_path / "asked").exists() else []
        process = subprocess.Popen(
            [sys.executable, "-c", program, config.model_dump_json()],
            cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)},
        )  # fmt: skip
        if delay_s is None:
            assert process.wait(timeout=300) == 0
        else:
            while not _answered(config) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        now = (tmp_path / "asked").read_text().split()[len(before) :]
        assert not answered & set(now)
    run(calm, open_keeper(calm))
    assert files(config) == files(calm)


def _answered(config: TextConfig) -> list[str]:
    """Keys of the whole lines that are on disk."""
    found = calls_folder(config).glob("answers-*.jsonl")
    lines = [line for path in found for line in path.read_bytes().split(b"\n")[:-1]]
    return [line.partition(b'"key":"')[2][:32].decode() for line in lines]
