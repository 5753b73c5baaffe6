"""The whole command against a real endpoint on loopback: killed anywhere and run again; and behind one that misbehaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError
from synthesis.calls import Request
from synthesis.calls_store import AnswerStore
from synthesis.cli import main
from synthesis.config import SynthesisConfig
from synthesis.dialogues import dialogues_path, read_dialogues
from synthesis.jobs import STAGES
from synthesis.jobs_run import run_text
from synthesis.media import FOLDERS
from tests.synthesis.chat_server import ChatServer, chat_server

SECONDS_SINCE = {"report.json", "synthesis.json"}  # of the corpus: they say how long it took, and with how many workers


def settings(output: Path, repository: Path, **llm: object) -> dict[str, Any]:
    """20 topics, 20 scenarios, 20 dialogues and their media, in units of a few."""
    lists = repository / "configs/synthesis"
    endpoint = {"kind": "endpoint", "model": "rules-1", "base_url": "http://127.0.0.1:9/v1", "concurrency": 2}
    topics = {"num_meta_topics": 2, "rounds": 1, "per_round": 10, "meta_topics_per_unit": 1}
    scenarios = {"count": 20, "topics_per_call": 5, "calls_per_unit": 1}
    return {
        "output": str(output),
        "workers": 0,
        "llm": {**endpoint, **llm},
        "topics": {"meta_topics": str(lists / "meta_topics.txt"), **topics},
        "scenarios": {"demonstrations": str(lists / "scenarios.toml"), **scenarios},
        "dialogues": {"demonstrations": str(lists / "dialogues.toml"), "calls_per_unit": 4, "languages": []},
        "media": {"music_s": 1.0, "spoken_rounds": 1, "unit_dialogues": 4, "workers": 0},
    }


def job(output: Path, repository: Path, **llm: object) -> SynthesisConfig:
    """The same as a config."""
    return SynthesisConfig.model_validate(settings(output, repository, **llm))


def written(file: Path, told: dict[str, Any]) -> Path:
    """The same as a file."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items() if not isinstance(value, dict)]
    for name, table in told.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def files(output: Path) -> dict[str, bytes]:
    """Every file of the stages and of the corpus that does not say how long it took."""
    found = (path for stage in (*STAGES, "corpus") for path in (output / stage).rglob("*") if path.is_file())
    timed = {output / "corpus" / name for name in SECONDS_SINCE}
    return {str(path.relative_to(output)): path.read_bytes() for path in found if path not in timed}


def started(file: Path, repository: Path, server: ChatServer) -> subprocess.Popen[bytes]:
    """The command with two workers of Ray."""
    sets = [f"--set={setting}" for setting in (f"llm.base_url={server.url}", "workers=2", "media.workers=2")]
    command = [sys.executable, "-m", "synthesis.cli", str(file), *sets]
    return subprocess.Popen(command, cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)})


def made(output: Path) -> int:
    """Media that are there."""
    return sum(len(list((output / "corpus" / folder).glob("*.*"))) for folder in FOLDERS.values())


@pytest.mark.slow
def test_the_command_killed_at_random_repeats_no_answered_call_and_ends_as_if_undisturbed(
    tmp_path: Path, repository: Path
) -> None:
    """SIGKILL while it asks and while it makes media, Ray's workers and all; the server's log is the witness."""
    config, calm = job(tmp_path / "killed", repository), job(tmp_path / "calm", repository)
    file = written(tmp_path / "killed.toml", settings(config.output, repository))
    chance = random.Random(os.environ.get("CHAOS_SEED", "7"))
    calls, media = chance.randint(3, 20), chance.randint(1, 40)
    with chat_server(config, delay_s=0.1) as server:
        for is_time in (lambda: len(server.log) >= calls, lambda: made(config.output) >= media, None):
            answered, before = _answered(config), len(server.log)
            process = started(file, repository, server)
            if is_time is None:
                assert process.wait(timeout=300) == 0
            else:
                while not is_time() and process.poll() is None:
                    time.sleep(0.01)
                assert process.poll() is None, "ended before it was killed"
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            assert not answered & set(server.log[before:]), "an answered call was made again"
        assert max(server.tries.values()) <= 2, "a kill costs what was under way, once"
    with chat_server(calm) as server:
        told = settings(calm.output, repository, base_url=server.url)
        assert main([str(written(tmp_path / "calm.toml", told))]) == 0
        assert len(server.log) == len(server.tries) == len(_answered(config))
    assert files(config.output) == files(calm.output)
    lines = (config.output / "corpus/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert len(set(ids)) == len(ids) >= 15


def _answered(config: SynthesisConfig) -> set[str]:
    """Keys of the whole lines that are on disk."""
    found = (config.output / "calls").glob("answers-*.jsonl")
    lines = [line for path in found for line in path.read_bytes().split(b"\n")[:-1]]
    return {line.partition(b'"key":"')[2][:32].decode() for line in lines if b'"answer"' in line}


ONCE = {0: "garbage", 1: "rate", 2: "error", 3: "nothing", 4: "late", 5: "empty"}
ALWAYS = {6: ("garbage", "call_garbage"), 7: ("error", "call_http_500"), 8: ("nothing", "call_no_connection")}


def _lot(request: Request) -> int:
    return int(request.key[:8], 16) % 14


def misbehave(request: Request, nth: int) -> str:
    """Six calls of fourteen fail once, three fail always, but for topics, of which there are too few to spare.

    Only dialogues are ever late, for all that are late together cost the test one wait.
    """
    lot = _lot(request)
    if lot in ALWAYS and request.kind != "topics":
        return ALWAYS[lot][0]
    fault = ONCE.get(lot, "") if nth == 0 else ""
    return "" if fault == "late" and request.kind != "dialogues" else fault


def test_an_endpoint_that_misbehaves_costs_tries_and_rejects_and_never_the_job(
    tmp_path: Path, repository: Path
) -> None:
    """Garbage, 429, 500, nothing, empty, too late: what fails once is answered, what fails always is rejected by name."""
    config = job(tmp_path, repository, timeout_s=8.0, max_tries=3, backoff_s=0.01, concurrency=4)
    config = config.model_copy(update={"run_share": 0.9, "media": None})
    with chat_server(config, misbehave=misbehave) as server:
        llm = config.llm.model_copy(update={"base_url": server.url})
        reports = run_text(config.model_copy(update={"llm": llm}))
        tries, requests = Counter(server.tries), dict(server.requests)
    for stage in STAGES:
        report = reports[stage]
        left_out = sum(report["filtered"].values()) + sum(report["rejected"].values())
        assert report["inputs"] == report["written"] + left_out
        assert report["written"]
    lost = {key: one for key, one in requests.items() if one.kind != "topics" and _lot(one) in ALWAYS}
    wanted = Counter[str]()
    for one in lost.values():
        wanted[f"{one.kind} {ALWAYS[_lot(one)][1]}"] += 5 if one.kind == "scenarios" else 1
    found = Counter[str]()
    for stage in STAGES:
        found.update(
            {f"{stage} {name}": n for name, n in reports[stage]["rejected"].items() if name.startswith("call_")}
        )
    assert found == wanted
    assert found, "nothing was lost; the lots say nothing"
    assert {tries[key] for key in lost} == {3}
    assert all(tries[key] <= 3 for key in requests)
    assert {_lot(one) for key, one in requests.items() if tries[key] == 2} & set(ONCE)
    table = pq.read_table(tmp_path / "dialogues/rejects.parquet")
    ids = [one.dialogue_id for one in read_dialogues(dialogues_path(tmp_path))]
    assert len(ids) == len(set(ids)) == reports["dialogues"]["written"]
    assert table.num_rows == sum(reports["dialogues"]["rejected"].values())
    store = AnswerStore(tmp_path / "calls")
    assert all((store.get(key) is None) == (key in lost) for key in requests)
    store.close()


def test_an_endpoint_that_refuses_the_key_stops_the_job_with_its_answer(tmp_path: Path, repository: Path) -> None:
    """Every further call would be refused alike."""
    with chat_server(job(tmp_path, repository), misbehave=lambda _request, _nth: "refused") as server:
        with pytest.raises(ConfigError, match=r"answered 401 .* who are you"):
            run_text(job(tmp_path, repository, base_url=server.url))
        assert len(server.log) <= 2
