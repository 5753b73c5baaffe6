"""What is looked at before a run: each check finds its fault, says what to do, and can be skipped."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.errors import AnyGPTError, ConfigError, DatasetError, FingerprintMismatch
from train import preflight as room
from train.cli import main
from train.config import TrainConfig
from train.plan import Plan, make_plan
from train.preflight import Finding, Place, check_before_start, free_memory, look, refuse
from train.trainer import train

Make = Callable[..., TrainConfig]
ALONE = Place(0, 1, 0, 1)
NAMES = ["processes", "fingerprints", "files", "disk", "clock", "memory"]


def make(config: TrainConfig) -> Plan:
    return make_plan(config, where="test.toml")


def found(plan: Plan, check: str, place: Place = ALONE, *, thorough: bool = False) -> Finding:
    (finding,) = [finding for finding in look(plan, place, thorough=thorough) if finding.check == check]
    return finding


def test_a_run_that_can_start_passes_every_check_and_nothing_is_left_behind(make_config: Make):
    plan = make(make_config())
    findings = look(plan, ALONE, thorough=True)
    assert [finding.check for finding in findings] == NAMES
    assert {finding.level for finding in findings} == {"ok"}
    assert not list(plan.config.output.iterdir())
    said: list[str] = []
    check_before_start(plan, said.append)
    assert not said, "a start says nothing when all is well"


def test_only_the_first_process_looks_at_what_all_share(make_config: Make):
    plan = make(make_config())
    assert [finding.check for finding in look(plan, Place(1, 2, 1, 2))] == ["processes", "memory"]


def test_a_number_of_processes_that_does_not_divide_the_batch(make_config: Make):
    finding = found(make(make_config()), "processes", Place(0, 3, 0, 3))
    assert finding.level == "fail" and "these numbers work: 1, 2, 4" in finding.message


def test_another_run_s_checkpoint_is_told_before_anything_is_built(make_config: Make):
    train(make(make_config(steps=3)))
    assert "step-00000003 is of this run" in found(make(make_config()), "fingerprints").message
    other = make(make_config(batch_rows=8))
    assert found(other, "fingerprints").level == "fail"
    with pytest.raises(FingerprintMismatch, match="started with another batch"):
        check_before_start(other, print)
    allowed = make(make_config(batch_rows=8, resume={"allow": ["batch"]}))
    finding = found(allowed, "fingerprints")
    assert finding.level == "warn" and "another batch" in finding.message
    said: list[str] = []
    check_before_start(allowed, said.append)
    assert said == [str(finding)]


def test_a_shard_that_was_cut_or_lost_names_dataset_and_file(make_config: Make, data: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    plan = make(make_config(data=copy))
    shard = next((copy / "speech").glob("*.arrow"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    for damage in (lambda: None, shard.unlink):
        damage()
        finding = found(plan, "files")
        assert finding.level == "fail" and "dataset speech" in finding.message and str(shard) in finding.message
        with pytest.raises(DatasetError, match=r"preflight\.skip"):
            refuse(plan, [finding])


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_will_be_full_is_told_with_the_numbers(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    """12 bytes of every parameter, for the checkpoints that are kept and one more, and 2 for the model."""
    plan = make(make_config(checkpoint={"every": 3, "keep": 2}))
    needed = (3 * 12 + 2) * plan.shape.num_parameters
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(needed, 1, needed - 1))
    finding = found(plan, "disk")
    assert finding.level == "fail" and "lower checkpoint.keep" in finding.message and "key 'output'" in finding.message
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(needed, 0, needed))
    assert found(plan, "disk").level == "ok"
    train(plan)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(needed, 0, needed // 2))
    assert found(plan, "disk").level == "ok", "what is there need not be written again"


def test_an_output_that_cannot_be_written(make_config: Make, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    finding = found(make(make_config(output=tmp_path / "file" / "run")), "clock")
    assert finding.level == "fail" and "give another output" in finding.message


def test_an_output_whose_clock_is_another_is_a_warning(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    now = room.time.time
    monkeypatch.setattr(room.time, "time", lambda: now() + 3600)
    finding = found(make(make_config()), "clock")
    assert finding.level == "warn" and "3,600 s" in finding.message


def test_memory_that_is_not_there_fails_and_memory_that_may_do_warns(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
):
    plan = make(make_config())
    parts = found(plan, "memory").message.split()
    assert parts[0] == "host:"
    for free, level in [(1 << 50, "ok"), (0, "fail")]:
        monkeypatch.setattr(room, "free_memory", lambda free=free: free)
        assert found(plan, "memory").level == level
    lines = [room._compare("host", 100.0, free, "fix it").level for free in (100.0, 95.0, 91.0, 89.0)]
    assert lines == ["ok", "warn", "warn", "fail"]


def test_free_memory_is_what_this_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory() <= total


@pytest.mark.parametrize("name", NAMES)
def test_every_check_can_be_skipped(make_config: Make, name: str):
    plan = make(make_config(preflight={"skip": [name]}))
    assert [finding.check for finding in look(plan, ALONE)] == [one for one in NAMES if one != name]


def test_all_that_failed_is_told_at_once_with_how_to_start_all_the_same(make_config: Make):
    findings = [Finding("disk", "fail", "full"), Finding("clock", "warn", "late"), Finding("memory", "fail", "small")]
    with pytest.raises(ConfigError) as caught:
        refuse(make(make_config()), findings)
    message = str(caught.value)
    assert "full; small" in message and "late" not in message
    assert """--set 'preflight.skip=["disk", "memory"]'""" in message


def test_the_command_stops_before_training_and_goes_on_when_told_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, data)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(1, 1, 0))
    assert main([str(path)]) == 2
    assert "preflight.skip" in capsys.readouterr().err and not (tmp_path / "run" / "metrics.jsonl").exists()
    assert main([str(path), "--set", 'preflight.skip=["disk"]']) == 0
    assert main([str(path), "--set", 'preflight.skip=["disc"]']) == 2
    assert "key 'preflight.skip.0'" in capsys.readouterr().err


def test_preflight_takes_a_step_and_keeps_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, data)
    assert main([str(path), "--preflight"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in [*NAMES, "step"]]
    assert "step 1 took" in lines[-1] and "loss 4." in lines[-1] and "tokens/s" in lines[-1]
    assert not list((tmp_path / "run").rglob("*.safetensors")) and not (tmp_path / "run" / "metrics.jsonl").exists()
    assert main([str(path)]) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert main([str(path), "--preflight", "--set", "steps=9"]) == 0
    assert "step 5 took" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at the host alone")
def test_errors_are_of_our_tree(make_config: Make):
    assert all(issubclass(finding.error, AnyGPTError) for finding in look(make(make_config()), ALONE))


def write(folder: Path, data: Path) -> Path:
    path = folder / "toy.toml"
    path.write_text(
        f'output = "{folder}/run"\ndata = "{data}"\nmixture = "{data}/mixture.toml"\nsteps = 4\nbatch_rows = 4\n'
        '[engine]\nkind = "torch"\ndtype = "fp32"\n[log]\ntensorboard = false\n'
        "[model]\nhidden_size = 32\nnum_heads = 2\nnum_layers = 1\nintermediate_size = 48\n",
        encoding="utf-8",
    )
    return path
