"""Runs of several processes without paying for their start: a process that has imported everything, and forks.

``python -m tests.train.process_groups`` reads one JSON object a line from stdin (a :class:`Case`) and answers with one: the
exit code of each process, and what they printed. Importing torch and DeepSpeed takes ten seconds a process, a fork nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import zlib
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEOUT_S = 90


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        config: of the run; ``rows-RANK.jsonl`` in its output has the checksums of the rows of every step.
        kill_at: every process ends itself with SIGKILL before this step, once the checkpoint before it is there.
        kill_in_write: the first process does so at this call of fsync of its background thread.
        term: (rank, step): that process is sent SIGTERM in that step.
    """

    world_size: int
    config: dict[str, Any]
    limit: int | None = None
    kill_at: int | None = None
    kill_in_write: int | None = None
    term: tuple[int, int] | None = None


class Groups:
    """A context manager around the process that forks."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.process_groups"],
            cwd=self._repository,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, case: Case) -> tuple[list[int], str]:
        """Exit codes, negative for signals, and what was printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asdict(case), default=str), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return answer["codes"], answer["printed"]

    def finish(self, case: Case) -> None:
        """Run what should end well."""
        codes, printed = self.run(case)
        assert codes == [0] * case.world_size, printed


def main() -> None:
    """Answer cases until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    import_module("deepspeed")
    # DeepSpeed imports it with its first optimizer, and with it torch's whole compiler: five seconds in every process.
    import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    import_module("train.trainer")
    for line in sys.stdin:
        data = json.loads(line)
        print(json.dumps(_fork(Case(**data))), file=answers, flush=True)


def _fork(case: Case) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = Path(case.config["output"]).with_suffix(".printed")
    printed.parent.mkdir(parents=True, exist_ok=True)
    printed.unlink(missing_ok=True)
    processes = []
    for rank in range(case.world_size):
        process = os.fork()
        if process == 0:
            _child(case, rank, port, printed)
        processes.append(process)
    codes = [_wait(process, processes) for process in processes]
    return {"codes": codes, "printed": printed.read_text(encoding="utf-8", errors="replace")[-4000:]}


def _wait(process: int, all_of_them: list[int]) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)


def _child(case: Case, rank: int, port: int, printed: Path) -> None:
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(case.world_size),
        "LOCAL_WORLD_SIZE": str(case.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = 1
    try:
        _train(case, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _train(case: Case, rank: int) -> None:
    from train import trainer
    from train.checkpoint import newest_checkpoint
    from train.config import TrainConfig
    from train.plan import make_plan
    from train.stream import RowStream

    config = TrainConfig.model_validate(case.config)
    plan = make_plan(config, where="test.toml")
    config.output.mkdir(parents=True, exist_ok=True)
    rows = (config.output / f"rows-{rank}.jsonl").open("a", encoding="utf-8")

    class Recording(RowStream):
        """Says what it gave, and ends the process where the case wants it."""

        def next(self) -> Any:
            step, batch = self._step, super().next()
            if step == case.kill_at:
                deadline = time.monotonic() + 30
                while newest_checkpoint(plan.checkpoints) is None and time.monotonic() < deadline:
                    time.sleep(0.005)
                os.kill(os.getpid(), signal.SIGKILL)
            if case.term is not None and [rank, step] == list(case.term):
                os.kill(os.getpid(), signal.SIGTERM)
            checksums = [zlib.crc32(row.tobytes()) for row in batch.token_ids]
            print(json.dumps({"step": step, "rows": checksums}), file=rows, flush=True)
            return batch

    trainer.RowStream = Recording
    if case.kill_in_write is not None and rank == 0:
        _kill_in_write(case.kill_in_write)
    trainer.train(plan, limit=case.limit)


def _kill_in_write(number: int) -> None:
    fsync, calls = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal calls
        if threading.current_thread().name == "checkpoint":
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted


if __name__ == "__main__":
    main()
