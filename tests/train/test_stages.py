"""A curriculum: order, what each stage starts from, going on after a stop, and earlier stages that changed."""

from __future__ import annotations

import gc
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

import pytest
from safetensors.numpy import load_file

from configs.load import load_config
from shards.errors import ConfigError
from train.backbone import Backbone
from train.checkpoint import complete_checkpoints
from train.cli import main
from train.config import TrainConfig
from train.metrics import read_metrics
from train.stages import load_stages

STAGE = """
output = "{runs}/{name}"
data = "{data}"
mixture = "{data}/mixture.toml"
steps = 4
batch_rows = 4
{more}
[engine]
kind = "torch"
dtype = "fp32"
[checkpoint]
every = 2
[log]
every = 1
tensorboard = false
"""
SHAPE = "[model]\nhidden_size = 32\nnum_layers = 2\nnum_heads = 2\nintermediate_size = 48\n[optimizer]\nlr = 1e-2"
Curriculum = Callable[..., Path]


@pytest.fixture
def curriculum(data: Path, tmp_path: Path) -> Curriculum:
    """Write the stages a, b and c, whose runs go into a folder ``runs``, and the curriculum of all three."""

    def write(runs: str = "runs", **more: str) -> Path:
        texts = {"a": SHAPE, "b": "[optimizer]\nlr = 5e-3", "c": "seed = 1"} | more
        for name, text in texts.items():
            filled = STAGE.format(runs=tmp_path / runs, name=name, data=data, more=text)
            (tmp_path / f"{name}.toml").write_text(filled, encoding="utf-8")
        path = tmp_path / "curriculum.toml"
        path.write_text(f"stages = {json.dumps([f'{name}.toml' for name in texts])}\n", encoding="utf-8")
        return path

    return write


def weights(runs: Path, name: str) -> bytes:
    return (runs / name / "checkpoints" / "final" / "model.safetensors").read_bytes()


def steps(runs: Path, name: str) -> list[int]:
    return [line["step"] for line in read_metrics(runs / name / "metrics.jsonl")]


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_stages_run_in_order_each_from_the_model_before_and_a_second_time_nothing_is_done(
    curriculum: Curriculum, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A stage whose learning rate is as good as none leaves the weights that it was given."""
    path, runs = curriculum(b="[optimizer]\nlr = 1e-30"), tmp_path / "runs"
    assert main([str(path)]) == 0
    assert [steps(runs, name) for name in "abc"] == [[1, 2, 3, 4]] * 3
    first, second = (load_file(runs / name / "checkpoints/final/model.safetensors") for name in "ab")
    assert all((first[name] == second[name]).all() for name in first)
    assert weights(runs, "c") != weights(runs, "b")
    said = capsys.readouterr().out
    assert [said.index(f"stage {number} of 3") for number in (1, 2, 3)] == sorted(
        said.index(f"stage {number} of 3") for number in (1, 2, 3)
    )
    before = files(runs)
    assert main([str(path)]) == 0
    assert files(runs) == before
    assert capsys.readouterr().out.count("nothing to do") == 3


@pytest.mark.parametrize("limit", [1, 3])
def test_a_curriculum_that_stopped_goes_on_as_if_it_had_not(curriculum: Curriculum, tmp_path: Path, limit: int):
    whole, runs = curriculum("whole"), tmp_path / "parts"
    assert main([str(whole)]) == 0
    path = curriculum("parts")
    assert main([str(path), "--limit", str(limit)]) == 0
    assert not (runs / "b").exists(), "a stage that is not finished is not gone past"
    assert main([str(path), "--set", "b.checkpoint.every=1", "--limit", "4"]) == 0
    assert main([str(path)]) == 0
    assert [weights(runs, name) for name in "abc"] == [weights(tmp_path / "whole", name) for name in "abc"]


def test_a_curriculum_killed_in_its_second_stage_goes_on_there(
    curriculum: Curriculum, tmp_path: Path, repository: Path
):
    whole = curriculum("whole")
    assert main([str(whole), "--set", "b.steps=40"]) == 0
    path, runs = curriculum("parts"), tmp_path / "parts"
    command = [sys.executable, "-m", "train.cli", str(path), "--set", "b.steps=40"]
    process = subprocess.Popen(
        command, cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 100
        while not any(complete_checkpoints(runs / "b" / "checkpoints")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    first = files(runs / "a")
    assert main([str(path), "--set", "b.steps=40"]) == 0
    assert files(runs / "a") == first, "the stage that was finished is left alone"
    assert [weights(runs, name) for name in "abc"] == [weights(tmp_path / "whole", name) for name in "abc"]


def test_two_processes_go_from_stage_to_stage_together(curriculum: Curriculum, tmp_path: Path, repository: Path):
    """The second one must wait for the model that the first exports; and DeepSpeed for the group it already has."""
    path = curriculum()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        group |= {"MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.cli", str(path), "--set", "engine.kind=deepspeed", "--set", "steps=1"]
    processes = [
        subprocess.Popen(
            command,
            cwd=repository,
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=150)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(f"{tmp_path}/runs/{name}: 1 of 1 steps are done" in said for said in outputs for name in "abc")


def test_a_changed_earlier_stage_is_refused_by_the_key_that_changed(
    curriculum: Curriculum, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = curriculum()
    assert main([str(path), "--set", "c.steps=6", "--limit", "4"]) == 0
    capsys.readouterr()
    before = files(tmp_path / "runs")
    assert main([str(path), "--set", "a.optimizer.lr=0.02"]) == 1
    message = capsys.readouterr().err
    assert "stage a was finished with other settings: optimizer.lr was 0.01, is 0.02" in message
    assert "stage b began from its model" in message and len(message.splitlines()) == 1
    assert main([str(path), "--set", "a.steps=8"]) == 1, "more steps of a stage that others began from"
    assert "steps was 4, is 8" in capsys.readouterr().err
    assert files(tmp_path / "runs") == before
    # What does not change what is learnt may change.
    assert main([str(path), "--set", "c.steps=6", "--set", "a.log.every=2", "--set", "engine.threads=1"]) == 0


def test_a_stage_trained_anew_with_other_settings_is_noticed_by_the_next(
    curriculum: Curriculum, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, runs = curriculum(), tmp_path / "runs"
    assert main([str(path)]) == 0
    shutil.rmtree(runs / "a")
    other = ["--set", "optimizer.lr=0.02"]
    assert main([str(tmp_path / "a.toml"), *other]) == 0
    capsys.readouterr()
    assert main([str(path), "--set", "a.optimizer.lr=0.02"]) == 1
    message = capsys.readouterr().err
    assert "b began from a as it was then" in message and "to train this stage again" in message
    shutil.rmtree(runs / "a")
    assert main([str(path)]) == 0, "the same settings make the same model"


def test_more_steps_of_the_last_stage_are_simply_trained(curriculum: Curriculum, tmp_path: Path):
    path = curriculum()
    assert main([str(path)]) == 0
    assert main([str(path), "--set", "c.steps=6"]) == 0
    assert steps(tmp_path / "runs", "c") == [1, 2, 3, 4, 5, 6]


def test_a_stage_may_name_what_it_starts_from_and_names_follow_a_moved_output(curriculum: Curriculum, tmp_path: Path):
    final = "checkpoints/final"
    path = curriculum(c=f'[init]\nfrom = "{tmp_path}/runs/a/{final}"')
    of = {stage.name: stage for stage in load_stages(path)}
    assert (of["a"].after, of["b"].after, of["c"].after) == (None, "a", "a")
    assert of["b"].config.init.folder == of["c"].config.init.folder == tmp_path / "runs" / "a" / final
    moved = load_stages(path, [f"a.output={tmp_path}/elsewhere"])
    assert moved[1].config.init.folder == moved[2].config.init.folder == tmp_path / "elsewhere" / final
    named = load_stages(path, ["c.init.from=models/other"])[2]
    assert named.after is None and named.config.init.folder == Path("models/other")


def test_what_a_stage_inherits_from_its_base_names_nothing(curriculum: Curriculum, tmp_path: Path):
    path = curriculum(a=f'[init]\nfrom = "models/llama"\n{SHAPE}')
    (tmp_path / "b.toml").write_text(f'base = "a.toml"\noutput = "{tmp_path}/b"\n', encoding="utf-8")
    stages = load_stages(path)
    assert stages[0].config.init.folder == Path("models/llama")
    assert stages[1].config.init.folder == stages[0].final


def test_settings_are_for_one_stage_or_for_all(curriculum: Curriculum):
    path = curriculum()
    path.write_text(path.read_text(encoding="utf-8") + "\n[set.b]\noptimizer.lr = 0.5\nseed = 7\n", encoding="utf-8")
    stages = load_stages(path, ["engine.head_chunk=9", "b.seed=8", "batch_rows=2"])
    assert [stage.config.engine.head_chunk for stage in stages] == [9, 9, 9]
    assert [stage.config.optimizer.lr for stage in stages] == [
        1e-2,
        0.5,
        TrainConfig.model_fields["optimizer"].default.lr,
    ]
    assert [stage.config.seed for stage in stages] == [0, 8, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages = []", ["key 'stages'", "at least 1 item"]),
        ('stages = ["a.toml", "a.toml"]', ["'a' twice", "rename it"]),
        ('stages = ["a.toml"]\n[set.d]\nseed = 1', ["'d' beside ['a']"]),
        ('stages = ["nowhere.toml"]', ["nowhere.toml", "expected a config file, found none"]),
        ('stages = ["a.toml"]\n[set.a]\nstep = 1', ["a.toml", "unknown key 'step'", "did you mean 'steps'?"]),
    ],
)
def test_a_wrong_curriculum_says_where(
    curriculum: Curriculum, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
):
    path = curriculum()
    path.write_text(text, encoding="utf-8")
    assert main([str(path), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_two_stages_in_one_folder_are_refused(curriculum: Curriculum):
    with pytest.raises(ConfigError, match="expected an output of its own for every stage"):
        load_stages(curriculum(), ["output=runs/one"])


def test_the_engine_of_a_stage_is_gone_before_the_next(curriculum: Curriculum):
    """Two 7B models on one GPU would not fit."""

    def backbones() -> list[Backbone]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, Backbone)]

    # Tests before this one may have left some; they are kept, so that none of ours can look like one of them.
    earlier = backbones()
    for kind in ("torch", "deepspeed"):
        assert main([str(curriculum(kind)), "--set", f"engine.kind={kind}", "--set", "steps=1"]) == 0
        assert len(backbones()) == len(earlier), kind


def test_a_dry_run_shows_every_stage_of_the_paper_without_data_or_weights(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(repository)
    path = "configs/curricula/anygpt-7b.toml"
    assert main([path, "--dry-run", "--gpus", "32", "--kind", "H200"]) == 0
    output = capsys.readouterr().out
    order = ["anygpt-7b-pretrain: 81,000 steps", "anygpt-7b-quality: 4,000 steps", "anygpt-7b-sft: 5,000 steps"]
    assert [output.index(words) for words in order] == sorted(output.index(words) for words in order)
    assert output.splitlines()[-1] == "all 3 stages: 185.04 G tokens, 4,899 GPU-hours, 6.4 days on 32 H200"
    assert main([path, "--dry-run", "--gpus", "96"]) == 2
    assert "a batch of 64 rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["anygpt-7b", "tiny"])
def test_shipped_curricula_chain_their_stages(repository: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(repository)
    stages = load_stages(Path("configs/curricula") / f"{name}.toml")
    assert [stage.after for stage in stages] == [None, stages[0].name, stages[1].name]
    for stage in stages[1:]:
        alone = load_config(stage.path, TrainConfig)
        assert alone.init.folder is not None, "each can also run on its own"
