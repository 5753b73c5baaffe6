"""Whole runs: killed, continued, repeated, spread over processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shards.errors import AnyGPTError, FingerprintMismatch
from train.checkpoint import newest_checkpoint, read_run_state
from train.cli import is_finished, main
from train.config import TrainConfig
from train.metrics import read_metrics
from train.plan import make_plan
from train.trainer import rate, train

Make = Callable[..., TrainConfig]
TIMES = {"tokens_per_s", "data_wait", "seconds", "memory_gib"}
DEEPSPEED = {"kind": "deepspeed", "zero": 2, "dtype": "bf16", "head_chunk": 50}

CONFIG = """
output = "{output}"
data = "{data}"
mixture = "{data}/mixture.toml"
steps = {steps}
batch_rows = 4
[model]
hidden_size = 32
num_layers = 2
num_heads = 2
intermediate_size = 48
[optimizer]
lr = 1e-2
[engine]
kind = "deepspeed"
dtype = "{dtype}"
[checkpoint]
every = 5
[log]
every = 2
tensorboard = false
"""


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every figure of every line that is not a time."""
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_config(folder: Path, data: Path, *, steps: int = 80, dtype: str = "bf16", name: str = "run") -> Path:
    path = folder / f"{name}.toml"
    text = CONFIG.format(output=folder / name, data=data, steps=steps, dtype=dtype)
    path.write_text(text, encoding="utf-8")
    return path


def start_command(config: Path, repository: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.cli", str(config)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def test_a_run_learns_every_modality_and_leaves_a_model(make_config: Make, tmp_path: Path):
    config = make_config(steps=60, engine=DEEPSPEED, log={"every": 10, "tensorboard": True}, checkpoint={"every": 100})
    assert run(config) == 60
    lines = curve(config.output)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert set(lines[0]["loss_by_modality"]) == {"text", "image", "speech", "music"}
    assert set(lines[0]["loss_by_dataset"]) == {"image", "speech", "music"}
    for modality, last in lines[-1]["loss_by_modality"].items():
        assert last < lines[0]["loss_by_modality"][modality] - 0.3, modality
    assert [line["lr"] for line in lines] == [rate(config, step) for step in (10, 20, 30, 40, 50, 60)]
    weighted = sum(lines[0]["loss_by_modality"][name] * count for name, count in lines[0]["targets"].items())
    assert lines[0]["loss"] == pytest.approx(weighted / sum(lines[0]["targets"].values()))
    model = AutoModelForCausalLM.from_pretrained(config.output / "checkpoints" / "final", local_files_only=True)
    assert model(torch.tensor([[1, 5, 25]])).logits.isfinite().all()
    assert list((config.output / "tensorboard").iterdir())
    assert json.loads((config.output / "config.json").read_text(encoding="utf-8"))["steps"] == 60


def test_stopping_at_any_step_and_going_on_changes_no_figure(make_config: Make, tmp_path: Path):
    """The interval that was open when the run stopped is finished by the next one."""
    shared = {"engine": DEEPSPEED, "steps": 12, "log": {"every": 4, "tensorboard": False}, "checkpoint": {"every": 5}}
    straight = make_config(output=tmp_path / "straight", **shared)
    assert run(straight) == 12
    halting = make_config(output=tmp_path / "halting", **shared)
    assert [run(halting, limit) for limit in (2, 7, 7, None)] == [2, 7, 7, 12]
    assert curve(halting.output) == curve(straight.output)
    left, right = (c.output / "checkpoints" / "final" / "model.safetensors" for c in (straight, halting))
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.slow
def test_a_run_killed_with_no_warning_continues_exactly_and_then_has_nothing_to_do(
    data: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
):
    undisturbed = write_config(tmp_path, data, name="undisturbed")
    assert main([str(undisturbed)]) == 0
    killed = write_config(tmp_path, data, name="killed")
    process, folder = start_command(killed, repository), tmp_path / "killed"
    deadline = time.monotonic() + 120
    while newest_checkpoint(folder / "checkpoints") is None and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = newest_checkpoint(folder / "checkpoints")
    assert reached is not None and read_run_state(reached).step < 80, "killed too late to mean anything"
    assert main([str(killed)]) == 0
    assert curve(folder) == curve(tmp_path / "undisturbed")
    assert [line["step"] for line in curve(folder)] == list(range(2, 81, 2))

    capsys.readouterr()
    before = contents(folder)
    assert main([str(killed)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(folder) == before


def test_a_run_that_died_before_its_model_was_written_writes_it(make_config: Make):
    config = make_config()
    assert run(config) == 6
    final = config.output / "checkpoints" / "final"
    before, lines = (final / "model.safetensors").read_bytes(), curve(config.output)
    shutil.rmtree(final)
    assert not is_finished(make_plan(config, where="test.toml"))
    assert run(config) == 6
    assert (final / "model.safetensors").read_bytes() == before
    assert curve(config.output) == lines and is_finished(make_plan(config, where="test.toml"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path, repository: Path):
    """Float32, the same global batch; then one process continues what two began."""
    alone = write_config(tmp_path, data, steps=6, dtype="fp32", name="alone")
    assert main([str(alone)]) == 0
    both = write_config(tmp_path, data, steps=6, dtype="fp32", name="both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start_command(both, repository, RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in range(2)]
    for process in ranks:
        finish(process)
    one, two = curve(tmp_path / "alone"), curve(tmp_path / "both")
    assert [line["step"] for line in two] == [2, 4, 6]
    for left, right in zip(one, two, strict=True):
        assert left["targets"] == right["targets"]
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
        assert left["loss_by_modality"] == pytest.approx(right["loss_by_modality"], abs=5e-6)
    longer = both.read_text(encoding="utf-8").replace("steps = 6", "steps = 8")
    both.write_text(longer, encoding="utf-8")
    assert main([str(both)]) == 0
    assert curve(tmp_path / "both")[-1]["step"] == 8


def test_instruction_tuning_starts_from_the_weights_of_pretraining(make_config: Make, tmp_path: Path):
    pretrain = make_config(output=tmp_path / "pretrain", steps=30)
    assert run(pretrain) == 30
    final = tmp_path / "pretrain" / "checkpoints" / "final"
    tuned = make_config(output=tmp_path / "sft", steps=2, init={"from": final}, optimizer={"lr": 1e-9})
    assert run(tuned) == 2
    before, after = curve(pretrain.output), curve(tuned.output)
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], abs=0.3) and after[0]["loss"] < before[0]["loss"] - 1


def test_a_run_folder_is_not_continued_with_other_data(make_config: Make, tmp_path: Path):
    assert run(make_config(), limit=1) == 1
    with pytest.raises(FingerprintMismatch, match="another batch, mixture; give the run another output"):
        run(make_config(seed=1, batch_rows=8))
    assert run(make_config(optimizer={"lr": 1e-3}), limit=2) == 2, "a learning rate may change"


def test_a_loss_that_explodes_stops_the_run_and_saves_nothing_of_it(make_config: Make):
    """The first update ruins the weights; nothing tells before the second."""
    config = make_config(optimizer={"lr": 1e30}, checkpoint={"every": 1}, schedule={"warmup": 0})
    with pytest.raises(AnyGPTError, match="expected at most 4 steps in a row that are left out, found 5"):
        run(config)
    newest = newest_checkpoint(config.output / "checkpoints")
    assert newest is not None and read_run_state(newest).step == 1
