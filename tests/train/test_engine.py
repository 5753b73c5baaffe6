"""One update is one update: plain torch, ZeRO-1, 2 and 3 agree, and hand their state to each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from train.backbone import build_backbone
from train.checkpoint import OptimizerState
from train.collate import HostBatch, micro_batches
from train.config import TrainConfig
from train.engine import DeepSpeedEngine, Engine, make_engine, start_processes
from train.engine_state import whole_state
from train.plan import make_plan
from train.stream import RowStream

Make = Callable[..., TrainConfig]
Curve = list[tuple[float, float]]
ZERO = [("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]


def run(
    config: TrainConfig, first: int, last: int, state: OptimizerState | None = None
) -> tuple[Curve, OptimizerState, Engine]:
    """Losses and gradient norms of steps ``first`` to ``last``, the state after them, and the engine."""
    plan = make_plan(config, where="test.toml")
    micro_rows = config.engine.micro_batch_rows or config.batch_rows
    engine = make_engine(build_backbone(plan), config, start_processes(config), micro_batch_rows=micro_rows)
    if state is not None:
        engine.import_state(state)
    curve = []
    with RowStream(plan.mixture, plan.datasets, batch_rows=4, attention="document", first_step=first) as stream:
        for _ in range(first, last + 1):
            curve.append(update(engine, stream.next(), micro_rows))
    return curve, whole_state(engine.export_state()), engine


def update(engine: Engine, batch: HostBatch, micro_rows: int) -> tuple[float, float]:
    total, passes = 0.0, 4 // micro_rows
    for number, micro in enumerate(micro_batches(batch, micro_rows, torch.device("cpu")), start=1):
        loss, _ = engine.forward(micro)
        engine.backward(loss / batch.num_targets, last=number == passes)
        total += loss.item() / batch.num_targets
    return total, engine.step(1e-2)


def config_of(make: Make, kind: str, zero: int, dtype: str, micro: int | None = None) -> TrainConfig:
    return make(engine={"kind": kind, "zero": zero, "dtype": dtype, "micro_batch_rows": micro, "head_chunk": 50})


@pytest.fixture(scope="module")
def reference() -> dict[str, Curve]:
    """Curves of plain torch, made once."""
    return {}


@pytest.mark.parametrize(("kind", "zero"), ZERO)
@pytest.mark.parametrize("micro", [None, 1])
def test_deepspeed_in_float32_is_plain_torch(
    make_config: Make, reference: dict[str, Curve], kind: str, zero: int, micro: int | None
):
    """However the batch is cut into forward passes: the loss is a sum over the step's targets, not a mean of means."""
    if "fp32" not in reference:
        reference["fp32"] = run(config_of(make_config, "torch", 2, "fp32"), 1, 20)[0]
    curve, _, _ = run(config_of(make_config, kind, zero, "fp32", micro), 1, 20)
    found, expected = np.array(curve), np.array(reference["fp32"])
    assert np.abs(found - expected)[:, 0].max() < 2e-6
    assert np.abs(found / expected - 1)[:, 1].max() < 1e-4
    assert expected[-1, 0] < expected[0, 0] - 1, "the toy run should learn"


@pytest.mark.parametrize(("kind", "zero"), [("torch", 2), *ZERO])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_continued_from_its_state_is_the_run(make_config: Make, kind: str, zero: int, dtype: str):
    config = config_of(make_config, kind, zero, dtype)
    straight, end, _ = run(config, 1, 6)
    first, middle, _ = run(config, 1, 3)
    second, other_end, _ = run(config, 4, 6, middle)
    assert first + second == straight
    assert end.step == other_end.step == 6
    for name, array in end.master.items():
        assert (array == other_end.master[name]).all(), name
        assert (end.exp_avg_sq[name] == other_end.exp_avg_sq[name]).all(), name


def test_a_state_moves_between_engines(make_config: Make):
    """ZeRO-2 -> plain torch -> ZeRO-3 -> ZeRO-1: the tensors go by name, so the format knows no engine."""
    straight, _, _ = run(config_of(make_config, "torch", 2, "fp32"), 1, 8)
    moved: Curve = []
    state = None
    for number, (kind, zero) in enumerate((("deepspeed", 2), ("torch", 2), ("deepspeed", 3), ("deepspeed", 1))):
        config = config_of(make_config, kind, zero, "fp32")
        curve, state, _ = run(config, 2 * number + 1, 2 * number + 2, state)
        moved += curve
    np.testing.assert_allclose(np.array(moved)[:, 0], np.array(straight)[:, 0], rtol=0, atol=1e-5)


def test_bfloat16_keeps_a_float32_master_and_float32_rotary_frequencies(make_config: Make):
    """Frequencies rounded to bfloat16 would be wrong by radians at position 1,000 and nobody would be told."""
    _, state, engine = run(config_of(make_config, "deepspeed", 2, "bf16"), 1, 2)
    assert isinstance(engine, DeepSpeedEngine)
    module = engine._engine.module
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in module.buffers()} == {torch.float32}
    for name, parameter in module.named_parameters():
        master = torch.from_numpy(state.master[name])
        assert (master.bfloat16() == parameter).all(), name
    differs = [
        name
        for name, array in state.master.items()
        if (torch.from_numpy(array).bfloat16() != torch.from_numpy(array)).any()
    ]
    assert differs, "the master should hold more than its rounding"


def test_without_a_compiler_deepspeed_still_starts(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    """No ninja, no c++ and no MPI on the path: nothing is compiled at start-up."""
    monkeypatch.setenv("PATH", "")
    curve, _, _ = run(config_of(make_config, "deepspeed", 2, "bf16"), 1, 1)
    assert np.isfinite(curve).all()
