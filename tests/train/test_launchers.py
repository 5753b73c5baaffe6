"""The SLURM script, on stand-ins for srun and scontrol: who is started with what, what a signal does, what comes again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path("configs/cluster/train-slurm.sh")

# Two tasks, each in the background, as srun starts them; a signal is handed on to both.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -USR1 "${tasks[@]}"' USR1
for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number SLURM_NTASKS=2 "$@" & tasks+=($!); done
code=0
for task in "${tasks[@]}"; do
    wait "$task" || code=$?
    while kill -0 "$task" 2>/dev/null; do code=0; wait "$task" || code=$?; done
done
exit "$code"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo first-node; echo second-node; else echo "$@" > queued; fi
"""
# Says who it is; with --long it works until it is told to stop, as the trainer does.
TRAIN = """#!/bin/bash
trap 'echo saved >> "task-$RANK"; exit 0' USR1
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" > "task-$RANK"
if [[ $2 == --fail ]]; then exit 3; fi
if [[ $2 == --long ]]; then while true; do sleep 0.05; done; fi
"""


@pytest.fixture
def job(tmp_path: Path, repository: Path) -> list[str]:
    """The script's command line, to be run in ``tmp_path``."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("", encoding="utf-8")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("anygpt-train", TRAIN)):
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return ["bash", str(repository / SCRIPT)]


def environment(folder: Path) -> dict[str, str]:
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1"}
    return os.environ | slurm | {"PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"}


def test_every_gpu_gets_a_process_that_knows_its_place(job: list[str], tmp_path: Path):
    done = subprocess.run([*job, "run.toml"], cwd=tmp_path, env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == 0
    for rank in (0, 1):
        said = (tmp_path / f"task-{rank}").read_text(encoding="utf-8")
        assert said == f"{rank} {rank} 2 2 first-node 24711 run.toml\n"
    assert not (tmp_path / "queued").exists(), "a run that ended by itself is not queued again"


def test_a_run_that_fails_fails_the_job(job: list[str], tmp_path: Path):
    command = [*job, "run.toml", "--fail"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == 3 and not (tmp_path / "queued").exists()


def test_before_the_time_limit_the_run_saves_and_is_queued_again(job: list[str], tmp_path: Path):
    process = subprocess.Popen([*job, "run.toml", "--long"], cwd=tmp_path, env=environment(tmp_path))
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("task-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # the script listens a moment after it has started them
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    for rank in (0, 1):
        assert (tmp_path / f"task-{rank}").read_text(encoding="utf-8").endswith("saved\n")
    assert (tmp_path / "queued").read_text(encoding="utf-8") == "requeue 4711\n"


def test_without_a_config_it_says_how_it_is_called(repository: Path):
    done = subprocess.run(["bash", str(repository / SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
