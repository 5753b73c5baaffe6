"""The same run in float32, however it is spread: processes, ZeRO stages, offloading, passes; compiled by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.process_groups import Case, Groups
from train.metrics import read_metrics

STEPS = 20
WAYS: dict[str, tuple[int, int, dict[str, Any]]] = {
    # processes, rows of a pass, engine
    "torch-1": (1, 6, {"kind": "torch"}),
    "torch-1-in-passes": (1, 1, {"kind": "torch"}),
    "torch-2": (2, 3, {"kind": "torch"}),
    "zero1-2": (2, 3, {"zero": 1}),
    "zero2-2": (2, 1, {"zero": 2}),
    "zero2-2-small-buckets": (2, 3, {"zero": 2, "reduce_bucket": 1000, "gather_bucket": 1000, "overlap": True}),
    "zero2-2-offload": (2, 1, {"zero": 2, "offload": "optimizer"}),
    "zero3-2": (2, 1, {"zero": 3, "persistent_below": 100, "max_live": 5000, "prefetch_bucket": 1000}),
    "zero3-2-offload": (2, 3, {"zero": 3, "offload": "parameters"}),
}


@pytest.fixture(scope="module")
def groups(repository: Path) -> Iterator[Groups]:
    """Without a path to ninja, a compiler, numactl or MPI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        with Groups(repository) as groups:
            yield groups


@pytest.fixture(scope="module")
def curves(groups: Groups, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Figures of every way, run once each."""
    root = tmp_path_factory.mktemp("ways")
    found = {}
    for name, (processes, rows, engine) in WAYS.items():
        config = {
            "output": str(root / name),
            "data": str(data),
            "mixture": str(data / "mixture.toml"),
            "steps": STEPS,
            "batch_rows": 6,
            "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24},
            "optimizer": {"lr": 3e-3, "weight_decay": 0.1, "clip": 0.65},
            "engine": engine | {"dtype": "fp32", "micro_batch_rows": rows, "head_chunk": 50},
            "checkpoint": {"every": 1000},
            "log": {"every": 1, "tensorboard": False},
        }
        groups.finish(Case(processes, config))
        found[name] = read_metrics(root / name / "metrics.jsonl")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name != "torch-1"])
def test_losses_of_twenty_steps_are_those_of_plain_torch_alone(curves: dict[str, list[dict[str, Any]]], name: str):
    """Masks differ from row to row, so a mean of means would show; the sum is over the targets of all processes."""
    expected, found = curves["torch-1"], curves[name]
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    worst = max(abs(one["loss"] - other["loss"]) for one, other in zip(found, expected, strict=True))
    assert worst < 1e-6, f"{name}: {worst}"
    for one, other in zip(found, expected, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert one["targets"] == other["targets"]
    norms = [line["grad_norm"] for line in expected]
    assert min(norms) < 0.65 < max(norms), "some steps should be clipped, others not"


@pytest.mark.slow
def test_the_run_learns(curves: dict[str, list[dict[str, Any]]]):
    losses = [line["loss"] for line in curves["torch-1"]]
    assert losses[-1] < losses[0] - 0.3
