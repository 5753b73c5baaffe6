"""A run is the same run whoever continues it: killed, stopped, on more or fewer processes, with another engine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.train.process_groups import Case, Groups
from train.checkpoint import newest_checkpoint, read_run_state
from train.metrics import read_metrics

STEPS, SAVED = 20, 10
ENGINES = {
    "zero1": {"kind": "deepspeed", "zero": 1},
    "zero2": {"kind": "deepspeed", "zero": 2},
    "zero3": {"kind": "deepspeed", "zero": 3},
    "plain": {"kind": "torch"},
    "offloaded2": {"kind": "deepspeed", "zero": 2, "offload": "optimizer"},
    "offloaded3": {"kind": "deepspeed", "zero": 3, "offload": "parameters"},
}
Figures = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def groups(repository: Path) -> Iterator[Groups]:
    with Groups(repository) as groups:
        yield groups


@pytest.fixture(scope="module")
def straight(groups: Groups, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, ZeRO-2, float32, 20 steps without a break; the checkpoint of step 10 is kept."""
    output = tmp_path_factory.mktemp("straight") / "run"
    groups.finish(Case(2, config(data, output, "zero2")))
    return output


def config(data: Path, output: Path, engine: str, *, dtype: str = "fp32", **checkpoint: object) -> dict[str, Any]:
    """Rows pass one by one, so that the number of processes changes no sum but the last."""
    return {
        "output": str(output),
        "data": str(data),
        "mixture": str(data / "mixture.toml"),
        "steps": STEPS,
        "batch_rows": 6,
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.1},
        "engine": ENGINES[engine] | {"dtype": dtype, "micro_batch_rows": 1, "head_chunk": 50},
        "checkpoint": {"every": SAVED, "keep": 9} | checkpoint,
        "log": {"every": 1, "tensorboard": False},
    }


def figures(output: Path) -> Figures:
    return {line["step"]: line for line in read_metrics(output / "metrics.jsonl")}


def rows(output: Path) -> dict[int, list[int]]:
    """Checksums of the rows of every step, over all processes; a step that was done twice counts as it was done last."""
    by_step: dict[int, dict[str, list[int]]] = {}
    for path in output.glob("rows-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            by_step.setdefault(said["step"], {})[path.name] = said["rows"]
    return {step: sorted(chain.from_iterable(ranks.values())) for step, ranks in by_step.items()}


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses, gradient norms and rows of every step, to the last digit."""
    left, right = figures(found), figures(expected)
    assert list(left) == list(right) == list(range(1, STEPS + 1))
    for step in right:
        for name in ("loss", "loss_by_modality", "loss_by_dataset", "grad_norm", "targets", "lr"):
            assert left[step][name] == right[step][name], f"step {step}: {name}"
    assert rows(found) == rows(expected)


def continue_from(checkpoint: Path, output: Path) -> None:
    shutil.copytree(checkpoint, output / "checkpoints" / checkpoint.name)


def test_killed_without_warning_it_goes_on_exactly(groups: Groups, data: Path, straight: Path, tmp_path: Path):
    """10 + kill -9 + 10 = 20: losses, gradient norms and what was read."""
    run = config(data, tmp_path / "run", "zero2")
    codes, printed = groups.run(Case(2, run, kill_at=13))
    assert codes == [-signal.SIGKILL] * 2, printed
    reached = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert reached is not None and read_run_state(reached).step == SAVED
    groups.finish(Case(2, run))
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.parametrize(
    ("world_size", "engine"),
    [(number, engine) for number in (1, 3) for engine in ("zero1", "zero2", "zero3", "plain")] + [(3, "offloaded3")],
)
def test_saved_by_two_it_goes_on_with_any_number_and_any_engine(
    groups: Groups, data: Path, straight: Path, tmp_path: Path, world_size: int, engine: str
):
    """Written by two processes under ZeRO-2; the first loss is that of the same weights, later ones differ by rounding."""
    output = tmp_path / "run"
    continue_from(straight / "checkpoints" / f"step-{SAVED:08d}", output)
    groups.finish(Case(world_size, config(data, output, engine)))
    found, expected = figures(output), figures(straight)
    assert list(found) == list(range(SAVED + 1, STEPS + 1))
    assert found[SAVED + 1]["loss"] == pytest.approx(expected[SAVED + 1]["loss"], rel=1e-12)
    for step in found:
        assert found[step]["loss"] == pytest.approx(expected[step]["loss"], abs=1e-5), step
        assert found[step]["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-4), step
    assert rows(output) == {step: rows(straight)[step] for step in found}


@pytest.mark.parametrize(("world_size", "engine"), [(3, "zero3"), (2, "plain"), (3, "offloaded2"), (1, "offloaded3")])
def test_what_any_engine_saves_two_under_zero_2_take_up(
    groups: Groups, data: Path, straight: Path, tmp_path: Path, world_size: int, engine: str
):
    first = tmp_path / "first"
    groups.finish(Case(world_size, config(data, first, engine), limit=SAVED))
    groups.finish(Case(2, config(data, first, "zero2")))
    found, expected = figures(first), figures(straight)
    assert [found[step]["loss"] for step in found] == pytest.approx([expected[s]["loss"] for s in found], abs=1e-5)


def test_in_bfloat16_the_weights_are_the_rounding_of_the_master(groups: Groups, data: Path, tmp_path: Path):
    """Nothing but float32 is stored; what the other engine computes with is what the first would have gone on with."""
    first, other = tmp_path / "first", tmp_path / "other"
    groups.finish(Case(2, config(data, first, "zero2", dtype="bf16")))
    continue_from(first / "checkpoints" / f"step-{SAVED:08d}", other)
    groups.finish(Case(3, config(data, other, "zero3", dtype="bf16"), limit=SAVED + 2))
    assert figures(other)[SAVED + 1]["loss"] == pytest.approx(figures(first)[SAVED + 1]["loss"], rel=1e-12)


@pytest.mark.parametrize("call", [1, 4])
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(
    groups: Groups, data: Path, straight: Path, tmp_path: Path, call: int
):
    """In the second checkpoint's first file, and when its last is written and the folder not yet renamed."""
    run = config(data, tmp_path / "run", "zero2", every=5)
    per_checkpoint = 8
    codes, printed = groups.run(Case(2, run, limit=10, kill_in_write=per_checkpoint + call))
    assert codes[0] == -signal.SIGKILL, printed
    reached = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert reached is not None and read_run_state(reached).step == 5
    assert list((tmp_path / "run" / "checkpoints").glob("step-00000010.*.tmp")), "killed before it began to write"
    groups.finish(Case(2, run))
    assert_same_run(tmp_path / "run", straight)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp"))


def test_what_one_process_finds_damaged_no_process_takes_up(groups: Groups, data: Path, straight: Path, tmp_path: Path):
    """Each of two processes checks other files; what one finds wrong is put aside by both."""
    run = config(data, tmp_path / "run", "zero2", every=5)
    groups.finish(Case(2, run, limit=10))
    file = tmp_path / "run" / "checkpoints" / "step-00000010" / "rank-00001-of-00002-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    groups.finish(Case(2, run))
    assert_same_run(tmp_path / "run", straight)
    assert (tmp_path / "run" / "checkpoints" / "step-00000010.damaged").is_dir()


def test_told_to_stop_all_processes_save_after_the_same_step(
    groups: Groups, data: Path, straight: Path, tmp_path: Path
):
    """SIGTERM reaches one process of two; both leave with exit code 0, and the next start goes on."""
    run = config(data, tmp_path / "run", "zero2")
    codes, printed = groups.run(Case(2, run, term=(1, 7)))
    assert codes == [0, 0], printed
    assert "SIGTERM: finishing the step and saving" in printed
    reached = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert reached is not None and read_run_state(reached).step in (7, 8)
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()
    groups.finish(Case(2, run))
    assert_same_run(tmp_path / "run", straight)
