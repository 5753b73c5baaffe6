"""The chunked loss equals the plain one, in value and in both gradients; its parts add up."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from train.collate import IGNORED
from train.loss import HeadLoss, _losses_by_maximum, full_cross_entropy, summed_cross_entropy

ROWS, LENGTH, HIDDEN, IDS = 3, 41, 16, 70


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=generator)
    weight = torch.randn(IDS, HIDDEN, generator=generator)
    labels = torch.randint(0, IDS, (ROWS, LENGTH), generator=generator)
    hide = torch.rand(ROWS, LENGTH, generator=generator) < 0.4
    return hidden, weight, labels.masked_fill(hide, IGNORED)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss * 0.125, inputs)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_chunked_cross_entropy_is_the_full_one(chunk: int):
    hidden, weight, labels = problem()
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    head = HeadLoss(torch.nn.Parameter(weight), num_ids=IDS, chunk=chunk)
    loss, losses = head(hidden, labels)
    plain = full_cross_entropy(hidden, weight, labels)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert losses.sum().item() == pytest.approx(loss.item(), rel=1e-6)
    ours = gradients(loss, hidden, head.weight)
    for found, expected in zip(ours, gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_target_that_is_all_but_impossible_costs_what_it_should():
    """Its probability is zero in float32, its loss is a thousand and not infinite."""
    hidden, weight, labels = problem()
    loss, losses = HeadLoss(torch.nn.Parameter(weight), num_ids=IDS, chunk=16)(hidden * 100, labels)
    assert losses.max() > 500 and losses.isfinite().all()
    assert loss.item() == pytest.approx(full_cross_entropy(hidden * 100, weight, labels).item(), rel=1e-6)


def test_losses_by_the_largest_probability_are_the_losses():
    """What a GPU computes, which nobody wants to wait for: targets likely, unlikely and all but impossible."""
    logits = torch.randn(50, IDS, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 50)[:, None]
    target = torch.arange(50)[:, None] % IDS
    found = _losses_by_maximum(torch.softmax(logits, dim=-1, dtype=torch.float32), logits, target)
    expected = -torch.log_softmax(logits.double(), dim=-1).gather(1, target).squeeze(1)
    assert expected.max() > 500
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_it_is_as_close_to_the_truth_as_the_plain_way():
    hidden, weight, labels = problem()
    truth = gradients(full_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), labels), hidden, weight)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    plain = gradients(full_cross_entropy(*low, labels), *low)
    wanted = labels[:, 1:] != IGNORED
    loss, _ = summed_cross_entropy(low[0][:, :-1][wanted], low[1], labels[:, 1:][wanted], chunk=16)
    for ours, theirs, true in zip(gradients(loss, *low), plain, truth, strict=True):
        assert (ours.float() - true).norm() <= 1.2 * (theirs.float() - true).norm()


def test_ids_that_only_pad_the_vocabulary_are_never_predicted_and_never_learn():
    hidden, weight, labels = problem()
    padded = torch.nn.Parameter(torch.cat([weight, torch.full((10, HIDDEN), 5.0)]))
    loss, _ = HeadLoss(padded, num_ids=IDS, chunk=20)(hidden, labels)
    assert loss.item() == pytest.approx(full_cross_entropy(hidden, weight, labels).item(), rel=1e-6)
    (gradient,) = gradients(loss, padded)
    assert gradient[IDS:].abs().max() == 0 < gradient[:IDS].abs().max()


def test_rows_without_a_target_cost_nothing_and_break_nothing():
    hidden, weight, _ = problem()
    labels = torch.full((ROWS, LENGTH), IGNORED)
    loss, losses = HeadLoss(torch.nn.Parameter(weight), num_ids=IDS, chunk=8)(hidden.requires_grad_(), labels)
    assert loss.item() == 0 and len(losses) == 0
    assert gradients(loss, hidden)[0].abs().max() == 0


def test_without_gradients_none_is_computed():
    hidden, weight, labels = problem()
    with torch.no_grad():
        loss, _ = HeadLoss(torch.nn.Parameter(weight), num_ids=IDS, chunk=8)(hidden, labels)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(full_cross_entropy(hidden, weight, labels).item(), rel=1e-6)


@pytest.mark.parametrize("learns", ["hidden", "weight", "neither"])
def test_gradients_that_nobody_asked_for_are_not_made(learns: str):
    """A head that is frozen under adapters, and validation; what is asked for is as it is with both."""
    hidden, weight, labels = problem()
    wanted = labels[:, 1:] != IGNORED
    states, targets = hidden[:, :-1][wanted], labels[:, 1:][wanted]
    both = states.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = gradients(summed_cross_entropy(*both, targets, chunk=16)[0], *both)
    part = states.clone().requires_grad_(learns == "hidden"), weight.clone().requires_grad_(learns == "weight")
    with MatrixProducts() as products:
        loss, _ = summed_cross_entropy(*part, targets, chunk=16)
    chunks = -(-len(targets) // 16)
    assert products.count == chunks * (1 if learns == "neither" else 2)
    for tensor, gradient in zip(part, expected, strict=True):
        if tensor.requires_grad:
            assert torch.equal(*gradients(loss, tensor), gradient)
    with torch.no_grad(), MatrixProducts() as products:
        summed_cross_entropy(*both, targets, chunk=16)
    assert products.count == chunks


class MatrixProducts(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "aten.mm" in str(func)
        return func(*args, **(kwargs or {}))
