"""The route of ``make pretrain`` and ``make sft``: commands one after the other, each timed and weighed.

A route is a list of commands that anyone could type. Each of them skips what is done by itself, so walking a finished
route again does no work; ``route.json`` keeps the figures of the walk that did it. A stage's figures are kept as long
as its command and the configs it names stay as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from configs.load import Config
from shards.errors import AnyGPTError
from shards.writer import commit_bytes

ROUTE_NAME = "route.json"
_SAMPLING_INTERVAL_S = 0.5


class StageConfig(Config):
    """One command of a route."""

    name: str
    command: tuple[str, ...]


class RouteConfig(Config):
    """What a file in ``configs/routes`` holds."""

    run: Path
    """Folder of the run; ``route.json`` goes there."""
    stages: tuple[StageConfig, ...]


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What a finished stage took."""

    key: str
    seconds: float
    peak_rss_gib: float


class StageFailed(AnyGPTError):
    """A command of the route ended with an error; its own message is above."""

    def __init__(self, stage: StageConfig, status: int) -> None:
        super().__init__(
            f"stage {stage.name!r} ended with status {status}: {' '.join(stage.command)}; "
            "mend what its message names and run the same make target again, finished stages are kept"
        )
        self.exit_code = 2 if status == 2 else 1


def walk(config: RouteConfig, *, announce: Callable[[str], None]) -> dict[str, StageFigures]:
    """Run every stage in order; figures by stage, of this walk or of the earlier one that did the work.

    Args:
        announce: told about each stage before it starts.

    Raises:
        StageFailed: at the first command that does not exit with 0.
    """
    figures = read_figures(config.run)
    for number, stage in enumerate(config.stages, start=1):
        announce(f"\n[{number}/{len(config.stages)}] {stage.name}: {' '.join(stage.command)}")
        key = stage_key(stage)
        seconds, peak = _run(stage)
        if stage.name not in figures or figures[stage.name].key != key:
            figures[stage.name] = StageFigures(key, round(seconds, 1), round(peak, 2))
            _write_figures(config.run, figures)
    return figures


def read_figures(run: Path) -> dict[str, StageFigures]:
    """What ``route.json`` of a run holds, by stage; empty before the first stage."""
    path = run / ROUTE_NAME
    if not path.is_file():
        return {}
    return {name: StageFigures(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def stage_key(stage: StageConfig) -> str:
    """16 hex digits over the command and the bytes of every config file it names."""
    digest = hashlib.sha256(json.dumps(stage.command).encode())
    for argument in stage.command:
        if argument.endswith(".toml") and Path(argument).is_file():
            digest.update(Path(argument).read_bytes())
    return digest.hexdigest()[:16]


def tree_rss_gib(process: psutil.Process) -> float:
    """Resident memory of a process and all its descendants; shared pages count once per process."""
    total = 0
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for member in members:
        try:
            total += member.memory_info().rss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total / 2**30


def _run(stage: StageConfig) -> tuple[float, float]:
    started = time.monotonic()
    # Threads that wait must sleep: on a shared machine, spinning ones cost several times the work itself.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    process = subprocess.Popen(_resolved(stage.command), env=environment)
    stop, peak = threading.Event(), [0.0]

    def watch() -> None:
        try:
            root = psutil.Process(process.pid)
        except psutil.NoSuchProcess:
            return
        while not stop.wait(_SAMPLING_INTERVAL_S):
            peak[0] = max(peak[0], tree_rss_gib(root))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        status = process.wait()
    finally:
        stop.set()
        watcher.join()
        if process.poll() is None:
            process.terminate()
    if status:
        raise StageFailed(stage, status)
    return time.monotonic() - started, peak[0]


def _resolved(command: Sequence[str]) -> list[str]:
    """The command with its program taken from beside this interpreter, where the set-up put it."""
    program = Path(sys.executable).parent / command[0]
    return [str(program) if program.is_file() else command[0], *command[1:]]


def _write_figures(run: Path, figures: dict[str, StageFigures]) -> None:
    data = {name: asdict(entry) for name, entry in figures.items()}
    commit_bytes(run / ROUTE_NAME, (json.dumps(data, indent=1) + "\n").encode())
