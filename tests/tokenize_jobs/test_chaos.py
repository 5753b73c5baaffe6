"""Two nodes write what one writes, also when processes are killed at random moments.

SIGKILL to the driver, a decoding worker, an encoding actor, the raylet of the second node. Afterwards every byte is that of
an undisturbed run, no unit is there twice or missing, and no temporary file is left. It takes some twenty seconds a kill,
most of them for starting processes again, so the suite leaves it out: ``make chaos`` kills 32 times, ``CHAOS_KILLS=4`` as
often as one likes. The moments come from a seed, but what is hit at a moment is the machine's business.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from shards.ledger import read_entries
from shards.verify import verify_dataset
from tests.tokenize_jobs.test_tokenize_job import tree, write_codec, write_config, write_corpus
from tokenize_jobs.cli import tokenize
from tokenize_jobs.dataset_report import TIMED_NAMES
from tokenize_jobs.log import log_path
from tokenize_jobs.session import LOCAL_ENVIRONMENT

KILLS = int(os.environ.get("CHAOS_KILLS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
SHARDS, PICTURES, UNIT_ITEMS = 3, 120, 2
DEADLINE_S = 120 + 30 * KILLS
COMMAND = [sys.executable, "-c", "import sys; from tokenize_jobs.cli import tokenize; sys.exit(tokenize(sys.argv[1:]))"]


NOTICE_SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that is lost is noticed within seconds, and not half a minute."""


class Nodes:
    """Two real raylets on this machine, the second of which may be lost; its environment is the caller's to set."""

    def __init__(self) -> None:
        node = {"num_cpus": 1, "object_store_memory": 128 << 20}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self._node = node
        self._second = self._cluster.add_node(**node)
        self.address = str(self._cluster.address)

    def lose_the_second(self) -> None:
        """Kill its raylet, and start another in its place."""
        process = self._second.all_processes["raylet"][0].process
        os.kill(process.pid, signal.SIGKILL)
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**self._node)

    def workers(self, title: str) -> list[psutil.Process]:
        """Its worker processes whose title has these words."""
        found: list[psutil.Process] = []
        for node in (self._cluster.head_node, self._second):
            raylet = node.all_processes["raylet"][0].process
            try:
                children = psutil.Process(raylet.pid).children(recursive=True)
                found += [child for child in children if title in " ".join(child.cmdline())]
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    # Where none is lost on purpose, a busy machine that answers late must not count as lost either.
    for name, value in (LOCAL_ENVIRONMENT | (NOTICE_SOON if KILLS else {})).items():
        monkeypatch.setenv(name, value)
    nodes = Nodes()
    yield nodes
    nodes.close()


def kill_one(kind: str, nodes: Nodes, driver: subprocess.Popen[bytes], chosen: random.Random) -> bool:
    """Whether there was one to kill."""
    if kind == "driver":
        driver.kill()
        driver.wait()
        return True
    if kind == "raylet":
        nodes.lose_the_second()
        return True
    # Ray names a worker after what it runs: a task Map(decode_row), an actor MapWorker(Map(EncodeRow)).
    victims = nodes.workers("EncodeRow" if kind == "actor" else "decode_row")
    if not victims:
        return False
    try:
        chosen.choice(sorted(victims, key=lambda one: one.pid)).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def undisturbed(config: Path, output: Path) -> Path:
    """The dataset as one process writes it, alone."""
    assert tokenize([str(config), "--set", f"output={output}", "--set", "workers=0"]) == 0
    return output


@pytest.mark.slow
def test_two_nodes_write_the_files_of_one(nodes: Nodes, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "root")
    config = write_config(tmp_path, root, write_codec(tmp_path / "codec.safetensors"), unit_items=2)
    output = tmp_path / "out" / "laion2b"
    # No two encoding actors fit on one of the two nodes.
    keys = [f"cluster.address={nodes.address}", "cluster.decode_cpus=0.3", "cluster.encode_cpus=0.7", "workers=2"]
    command = [*COMMAND, str(config), *(word for key in keys for word in ("--set", key))]
    assert subprocess.run(command, check=False).returncode == 0
    events = [json.loads(line) for line in log_path(output).read_text(encoding="utf-8").splitlines()]
    assert len({event["worker"] for event in events if event["event"] == "unit_done"}) == 2
    assert tree(output, but=TIMED_NAMES) == tree(undisturbed(config, tmp_path / "alone"), but=TIMED_NAMES)


@pytest.mark.skipif(not KILLS, reason="takes minutes: make chaos, or CHAOS_KILLS=4")
def test_killed_at_random_moments_the_dataset_is_that_of_an_undisturbed_run(nodes: Nodes, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "root", shards=SHARDS, pictures=PICTURES)
    config = write_config(tmp_path, root, write_codec(tmp_path / "codec.safetensors"), unit_items=UNIT_ITEMS)
    output = tmp_path / "out" / "laion2b"
    # Unequal shares of a CPU keep decoding and encoding apart; one of each fits on a node.
    keys = [f"cluster.address={nodes.address}", "cluster.decode_cpus=0.5", "cluster.encode_cpus=0.4", "workers=2"]
    command = [*COMMAND, str(config), *(word for key in keys for word in ("--set", key))]
    chosen = random.Random(SEED)
    kinds = ["actor", "worker", "driver", "raylet"] * -(-KILLS // 4)
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + DEADLINE_S
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        while sum(killed.values()) < KILLS:
            is_running = wait_for_more(output, driver, deadline)
            assert time.monotonic() < deadline, f"only {dict(killed)}: {(tmp_path / 'driver.log').read_text()[-4000:]}"
            time.sleep(chosen.uniform(0.0, 0.5))
            if not is_running:
                assert driver.returncode in (0, -signal.SIGKILL), (tmp_path / "driver.log").read_text()[-4000:]
                if driver.returncode == 0:
                    lose_some_units(output, chosen)
                driver = subprocess.Popen(command, stdout=log, stderr=log)
                continue
            kind = kinds[sum(killed.values())]
            killed[kind] += kill_one(kind, nodes, driver, chosen)
        if driver.poll() is None:
            driver.wait(timeout=DEADLINE_S)
        if driver.returncode:
            driver = subprocess.Popen(command, stdout=log, stderr=log)
            driver.wait(timeout=DEADLINE_S)
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()[-4000:]
    assert sum(killed.values()) == KILLS
    assert tree(output, but=TIMED_NAMES) == tree(undisturbed(config, tmp_path / "alone"), but=TIMED_NAMES)
    assert verify_dataset(output).faults == ()
    numbers = [entry.number for entry in read_entries(output)]
    assert numbers == list(range(len(numbers)))
    assert not [path for path in output.rglob("*") if path.name.endswith(".tmp")]
    events = [json.loads(line) for line in log_path(output).read_text(encoding="utf-8").splitlines()]
    assert {event["unit"] for event in events if event["event"] == "unit_done"} <= {f"unit-{n:06d}" for n in numbers}


def wait_for_more(output: Path, driver: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for two more units, so that every kill hits a run that is under way; whether the driver still runs."""
    count = len(list((output / "ledger").glob("unit-*")))
    while driver.poll() is None and time.monotonic() < deadline:
        if len(list((output / "ledger").glob("unit-*"))) >= count + 2:
            return True
        time.sleep(0.02)
    return driver.poll() is None


def lose_some_units(output: Path, chosen: random.Random) -> None:
    """It was done too early to be disturbed any more: give it something to do again."""
    entries = sorted((output / "ledger").glob("unit-*.json"))
    for path in chosen.sample(entries, len(entries) // 2):
        path.unlink()
