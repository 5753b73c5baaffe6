"""The plan of memory against what is there: tensors of real engines, and what torch saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from train.backbone import Backbone, build_backbone
from train.bill import layout_of, memory_of
from train.collate import MicroBatch, micro_batches
from train.config import LoraConfig, TrainConfig
from train.memory import GIB, Layout, MemoryPlan, plan_memory, trained_parameters
from train.outline import Outline, outline_run
from train.plan import Plan, make_plan
from train.shape import LLAMA_2_7B, Shape
from train.stream import RowStream
from train.trainer import open_stream, start, train_step

Make = Callable[..., TrainConfig]
STAGE_1 = replace(LLAMA_2_7B, vocabulary_size=49_536)
LENGTH = 4500
A_TENTH = 0.1
WIDE = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "intermediate_size": 176}
LAYOUT = Layout(1, 2, bytes_per_weight=2, bytes_per_gradient=2, micro_rows=1, checkpointed=0.0, chunk=2048)


def of_7b(**changes: Any) -> MemoryPlan:
    return plan_memory(STAGE_1, LENGTH, replace(LAYOUT, **changes))


@pytest.mark.parametrize(
    ("processes", "zero", "gib"),
    [
        (8, 1, 35.3),
        (8, 2, 24.0),
        (8, 3, 12.8),
        (64, 1, 26.8),
        (64, 2, 14.2),
        (64, 3, 1.6),
        (256, 2, 13.2),
        (256, 3, 0.4),
    ],
)
def test_states_of_the_7b_are_those_of_the_zero_paper_s_arithmetic(processes: int, zero: int, gib: float):
    """Weights and gradients in bfloat16, 12 bytes of optimizer; ZeRO-3 before it gathers anything."""
    assert of_7b(processes=processes, zero=zero).states / GIB == pytest.approx(gib, abs=0.05)


def test_activations_of_the_7b_are_those_estimated_by_hand():
    """26.1 GiB a row without checkpointing, and 1.9 with it, one layer computed again: within a tenth."""
    assert of_7b().activations / GIB == pytest.approx(26.1, rel=A_TENTH)
    checkpointed = of_7b(checkpointed=1.0)
    head = 2 * STAGE_1.vocabulary_size * STAGE_1.hidden_size
    assert (checkpointed.activations - head + checkpointed.recomputed) / GIB == pytest.approx(1.9, rel=A_TENTH)
    assert of_7b(micro_rows=2).activations - head == pytest.approx(2 * (of_7b().activations - head), rel=1e-3)


@settings(max_examples=40)
@given(st.sampled_from([1, 2, 4, 8, 96]), st.sampled_from([1, 2, 3]), st.integers(1, 4))
def test_more_processes_a_higher_stage_and_recomputing_never_take_more(processes: int, zero: int, rows: int):
    plan = of_7b(processes=processes, zero=zero, micro_rows=rows)
    assert of_7b(processes=2 * processes, zero=zero, micro_rows=rows).peak <= plan.peak
    assert of_7b(processes=processes, zero=max(1, zero - 1), micro_rows=rows).states >= plan.states
    assert of_7b(processes=processes, zero=zero, micro_rows=rows, checkpointed=1.0).peak <= plan.peak
    half = of_7b(processes=processes, zero=zero, micro_rows=rows, checkpointed=0.5)
    assert of_7b(processes=processes, zero=zero, micro_rows=rows, checkpointed=1.0).peak <= half.peak <= plan.peak
    assert of_7b(processes=processes, zero=zero, micro_rows=rows + 1).peak > plan.peak


def test_what_is_offloaded_is_on_the_host_instead():
    here, moved = of_7b(processes=8), of_7b(processes=8, offload="optimizer")
    assert here.host == 0 and here.states == moved.states + moved.host
    assert moved.host / GIB == pytest.approx(14 * 6.882e9 / 8 / GIB, rel=1e-3)


def test_adapters_of_a_7b_train_forty_million_parameters():
    """Rank 16 on all linear layers: 16 * 32 * (4 * 8,192 + 3 * 15,104)."""
    lora = LoraConfig(rank=16)
    assert trained_parameters(LLAMA_2_7B, lora) == 16 * 32 * (4 * 8192 + 3 * 15_104)
    plan, whole = plan_memory(STAGE_1, LENGTH, LAYOUT, lora), of_7b()
    assert plan.states / GIB == pytest.approx(13.45, abs=0.1)
    assert plan.activations < whole.activations


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_states_of_an_engine_are_the_bytes_of_its_tensors(make_config: Make, kind: str, dtype: str):
    """Weights, master weights and moments: every tensor that is there between two steps."""
    config = make_config(model=WIDE, engine={"kind": kind, "dtype": dtype, "zero": 2, "head_chunk": 50})
    plan = make_plan(config, where="test.toml")
    trainer = start(plan)
    with open_stream(trainer) as stream:
        train_step(trainer, stream.next(), 1e-3)
    seen = state_bytes(trainer.engine, trainer.network)
    planned = memory_of(outline(plan), layout_of(outline(plan), 1, gpu=False))
    for name, found in seen.items():
        assert getattr(planned, name) == pytest.approx(found, rel=A_TENTH), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_gradients_of_a_pass_are_those_planned(make_config: Make, kind: str, dtype: str):
    config = make_config(model=WIDE, engine={"kind": kind, "dtype": dtype, "zero": 2, "head_chunk": 50})
    plan = make_plan(config, where="test.toml")
    trainer = start(plan)
    with open_stream(trainer) as stream:
        batch = stream.next()
        (micro,) = micro_batches(batch, trainer.micro_rows, trainer.processes.device)
        loss, _ = trainer.engine.forward(micro)
        trainer.engine.backward(loss, last=True)
    planned = memory_of(outline(plan), layout_of(outline(plan), 1, gpu=False))
    assert planned.gradients == pytest.approx(gradient_bytes(trainer.engine), rel=A_TENTH)


@pytest.mark.parametrize("attention", ["row", "document"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_what_torch_saves(make_config: Make, dtype: str, checkpointing: bool, attention: str):
    config = make_config(
        model=WIDE,
        attention=attention,
        batch_rows=24,
        engine={"kind": "torch", "dtype": dtype, "head_chunk": 50, "activation_checkpointing": checkpointing},
    )
    plan = make_plan(config, where="test.toml")
    backbone = build_backbone(plan).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    seen = saved_bytes(backbone, a_batch(plan))
    planned = memory_of(outline(plan), layout_of(outline(plan), 1, gpu=False))
    assert planned.activations == pytest.approx(seen, rel=A_TENTH)


def outline(plan: Plan) -> Outline:
    found = outline_run(plan.config, where="test.toml")
    assert found.shape == plan.shape and found.sequence_length == plan.sequence_length and not found.missing
    return found


def a_batch(plan: Plan) -> MicroBatch:
    with RowStream(
        plan.mixture,
        plan.datasets,
        batch_rows=plan.config.batch_rows,
        attention=plan.config.attention,
        masking=None,
        first_step=1,
        rank=0,
        world_size=1,
    ) as stream:
        (micro,) = micro_batches(stream.next(), plan.config.batch_rows, torch.device("cpu"))
    return micro


def saved_bytes(backbone: Backbone, batch: MicroBatch) -> int:
    """Of all tensors that the forward pass keeps for the backward pass, weights aside, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = backbone(batch)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def state_bytes(engine: Any, network: torch.nn.Module) -> dict[str, int]:
    """Of the weights, master weights and moments of an engine of one process."""
    if hasattr(engine, "_master"):
        own = {parameter.data_ptr() for parameter in network.parameters()}
        masters = [master for master in engine._master.values() if master.data_ptr() not in own]
        inner = engine._optimizer
    else:
        zero = engine._engine.optimizer
        masters, inner = list(zero.single_partition_of_fp32_groups), zero.optimizer
    moments = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t) and t.numel() > 1]
    weights = {p.data_ptr(): p for p in network.parameters()}.values()
    return {"weights": total(weights), "master": total(masters), "moments": total(moments)}


def gradient_bytes(engine: Any) -> int:
    """Of what has been summed up so far."""
    if hasattr(engine, "_master"):
        return total(master.grad for master in engine._master.values())
    zero = engine._engine.optimizer
    return total(gradient for group in zero.averaged_gradients.values() for gradient in group)


def total(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_measured_model_is_one_that_could_show_a_mistake():
    """Its terms are of like size, so that a tenth of the sum is not a tenth of one of them."""
    shape = Shape(128, 64, 3, 4, 4, 176, False)
    plan = plan_memory(shape, 64, replace(LAYOUT, micro_rows=4, gpu=False))
    assert min(plan.activations, plan.states) * 10 > max(plan.activations, plan.states)
