"""Plain torch's update: sums in either dtype, parts of any size, a clip that is torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.test_engine import Curve, run
from train import torch_engine
from train.config import TrainConfig
from train.torch_engine import TorchEngine, clip, squared_norm

Make = Callable[..., TrainConfig]


def curve_of(make: Make, **engine: object) -> tuple[Curve, TorchEngine]:
    """Six steps of four passes, in bfloat16."""
    keys = {"kind": "torch", "dtype": "bf16", "micro_batch_rows": 1, "head_chunk": 50} | engine
    curve, _, found = run(make(engine=keys), 1, 6)
    return curve, found  # pyright: ignore[reportReturnType]


def test_sums_in_either_dtype_are_those_of_deepspeed(make_config: Make):
    """In float32 both add up the same numbers; in bfloat16 both round after every pass."""
    for gradients, tolerance in (("fp32", 2e-3), ("bf16", 4e-3)):
        ours, _ = curve_of(make_config, gradients=gradients)
        theirs, _ = curve_of(make_config, gradients=gradients, kind="deepspeed", zero=2)
        np.testing.assert_allclose(np.array(ours)[:, 0], np.array(theirs)[:, 0], rtol=0, atol=tolerance)
        np.testing.assert_allclose(np.array(ours)[0], np.array(theirs)[0], rtol=2e-3)


def test_widening_gradients_in_small_parts_changes_nothing(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    whole, _ = curve_of(make_config, gradients="bf16")
    monkeypatch.setattr(torch_engine, "WIDENED", 500)
    parts, engine = curve_of(make_config, gradients="bf16")
    assert parts == whole
    assert len(list(torch_engine._parts(engine._master, engine._parameters))) > 5
    steps = {int(state["step"]) for state in engine._optimizer.state.values()}
    assert steps == {6}, "every parameter is updated once a step"


@pytest.mark.parametrize(("gradients", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_there_is_one_set_of_gradients_and_none_after_the_step(make_config: Make, gradients: str, kept: torch.dtype):
    """A gradient is taken from its parameter as it is made: two sets of a 7B would be 41 GB."""
    _, engine = curve_of(make_config, gradients=gradients)
    owners = [*engine._master.values(), *engine._parameters.values()]
    assert all(owner.grad is None for owner in owners)
    loss = sum((parameter * 1.5).sum() for parameter in engine._parameters.values())
    assert isinstance(loss, torch.Tensor)
    engine.backward(loss, last=False)
    engine.backward(2 * loss.detach() * 0 + sum((p * 0.5).sum() for p in engine._parameters.values()), last=True)
    found = [owner.grad for owner in owners if owner.grad is not None]
    assert len(found) == len(engine._parameters) and {gradient.dtype for gradient in found} == {kept}
    assert all((gradient == 2.0).all() for gradient in found)


def test_float32_weights_are_their_own_masters(make_config: Make):
    _, _, engine = run(make_config(engine={"kind": "torch", "dtype": "fp32"}), 1, 1)
    assert isinstance(engine, TorchEngine)
    assert all(engine._master[name] is parameter for name, parameter in engine._parameters.items())


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.sampled_from([1e-3, 1.0, 50.0]), st.integers(0, 99))
def test_the_clip_is_that_of_torch(sizes: Sequence[int], scale: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.randn(size, generator=generator) * scale for size in sizes]
    parameters = [torch.zeros_like(gradient) for gradient in ours]
    for parameter, gradient in zip(parameters, ours, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    norm = float(squared_norm(ours).sqrt())
    clip(ours, norm, 1.0)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    for parameter, gradient in zip(parameters, ours, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


def test_a_norm_of_many_values_loses_no_digits():
    """Added up one after the other in float32 they would."""
    values = torch.full((5_000_000,), 1e-3)
    assert float(squared_norm([values] * 2).sqrt()) == pytest.approx(1e-3 * 10_000_000**0.5, rel=2e-6)
