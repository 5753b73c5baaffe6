"""Cross entropy over large vocabularies, in chunks, with the loss of every single target on the way.

Shapes: N targets, D hidden size, V vocabulary.

The head's logits are the largest tensor of a step (N x V); here they exist for a chunk of targets at a time, and only
for targets. Loss and gradient of a chunk are made together, in the forward pass: nothing is computed twice, which is
where this differs from checkpointing the head.

The loss is a *sum*. The trainer divides it by the number of targets of the whole global batch, so a step means the
same however it is cut into forward passes and ranks; a mean of means would not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from train.collate import IGNORED

_CPU_SOFTMAX_ROWS = 128
"""Rows whose float32 softmax stays in a CPU's cache; measured best of 32 to 1152 at 19,456 ids."""


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies and, not differentiable, each of them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        chunk: int,
        num_ids: int,
        learns: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        # A head that is frozen, under adapters, has no gradient; in validation nothing has.
        hidden_gradient = torch.empty_like(hidden_ND) if learns and hidden_ND.requires_grad else None
        weight_gradient = (
            torch.zeros_like(weight_VD, dtype=torch.float32) if learns and weight_VD.requires_grad else None
        )
        needs_gradient = hidden_gradient is not None or weight_gradient is not None
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            of_chunk = hidden_ND[part], weight_VD, targets_N[part], losses_N[part]
            gradient_CV = _chunk_losses(*of_chunk, num_ids=num_ids, needs_gradient=needs_gradient)
            if gradient_CV is not None and hidden_gradient is not None:
                torch.mm(gradient_CV, weight_VD, out=hidden_gradient[part])
            if gradient_CV is not None and weight_gradient is not None:
                weight_gradient += gradient_CV.T @ hidden_ND[part]
        ctx.save_for_backward(hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight_VD.dtype))
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any) -> tuple[torch.Tensor | None, ...]:
        scale = output_gradients[0]
        scaled = (None if one is None else one * scale.to(one.dtype) for one in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _chunk_losses(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_C: torch.Tensor,
    losses_C: torch.Tensor,
    *,
    num_ids: int,
    needs_gradient: bool,
) -> torch.Tensor | None:
    """Write the losses of a chunk; return the gradient of its logits, (C, V) in the dtype of the weights."""
    gradient_CV = hidden_CD.new_empty(len(targets_C), len(weight_VD)) if needs_gradient else None
    rows = _CPU_SOFTMAX_ROWS if hidden_CD.device.type == "cpu" else len(targets_C)
    for start in range(0, len(targets_C), rows):
        part = slice(start, start + rows)
        logits = hidden_CD[part] @ weight_VD.T
        if num_ids < len(weight_VD):
            # All rows are multiplied, and those that only pad the vocabulary never predicted: with logits of a width that is
            # a multiple of 64, matrix units of a GPU read and write whole blocks.
            logits[:, num_ids:] = float("-inf")
        target = targets_C[part, None]
        # One pass gives the probabilities, which the gradient needs anyway; a log_softmax would cost a second exp.
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        if logits.device.type == "cpu":
            losses_C[part] = _losses(probabilities.gather(1, target).squeeze(1), logits, target)
        else:
            losses_C[part] = _losses_by_maximum(probabilities, logits, target)
        if gradient_CV is not None:
            probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
            gradient_CV[part] = probabilities
    return gradient_CV


def _losses(of_target: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the logarithm of the targets' probabilities, also where float32 has no such small probability."""
    losses = -of_target.log()
    vanished = of_target < 1e-30
    if vanished.any():
        exact = torch.log_softmax(logits[vanished], dim=-1, dtype=torch.float32)
        losses[vanished] = -exact.gather(1, target[vanished]).squeeze(1)
    return losses


def _losses_by_maximum(probabilities: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same from the largest probability, which never vanishes, and how far the target's logit is below it.

    Nothing here depends on a value, so a GPU is not waited for; on a CPU it costs a pass more.
    """
    largest, place = probabilities.max(dim=-1, keepdim=True)
    below = logits.gather(1, place).float() - logits.gather(1, target).float()
    return (below - largest.log()).squeeze(1)


def summed_cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, *, chunk: int, num_ids: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross entropies of ``hidden_ND @ weight_VD.T``, and each of them.

    Args:
        chunk: targets whose logits exist at one time.
        num_ids: rows of the weight that can be predicted, the first ones; None: all.

    Returns:
        A scalar that can be differentiated, and (N,) float32 that cannot.
    """
    known = len(weight_VD) if num_ids is None else num_ids
    # Inside the function nothing is recorded, so it cannot ask itself.
    learns = torch.is_grad_enabled()
    return _SummedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, chunk, known, learns)  # pyright: ignore[reportReturnType]


class HeadLoss(nn.Module):
    """The output embedding and the loss in one module.

    It owns the head's parameter (shared with the backbone's ``lm_head``), because ZeRO-3 gathers a parameter only for
    the forward pass of a module that has it.
    """

    def __init__(self, weight: nn.Parameter, *, num_ids: int, chunk: int) -> None:
        super().__init__()
        self.weight = weight
        self._num_ids, self._chunk = num_ids, chunk

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state t predicts label t + 1.

        Args:
            hidden: (rows, length, D).
            labels: (rows, length), :data:`IGNORED` where there is nothing to predict.

        Returns:
            Summed loss, and (N,) the loss of every target in the order of the rows.
        """
        wanted = labels[:, 1:] != IGNORED
        return summed_cross_entropy(
            hidden[:, :-1][wanted], self.weight, labels[:, 1:][wanted], chunk=self._chunk, num_ids=self._num_ids
        )


def full_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same sum the plain way, all logits at once: the oracle of tests and benchmarks."""
    logits = (hidden[:, :-1] @ weight.T).float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
