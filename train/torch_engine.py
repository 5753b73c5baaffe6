"""The engine without DeepSpeed: every process holds everything.

The same arithmetic in a page of torch: gradients summed over passes and processes, one clip, fused AdamW on float32
masters, weights rounded from them. It is the oracle of DeepSpeed's engine, the cheaper one on one device, and the one
where DeepSpeed is not installed.

Where weights are float32 they are their own masters. Where they are bfloat16, gradients are added up in float32, each
taken over as soon as the backward pass has made it, so there is never a second set of them; or, with half the memory, in
bfloat16 by autograd, and then widened for the update some parameters at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from train.backbone import parameters_by_name, torch_dtype
from train.checkpoint import StateSource
from train.checkpoint_files import MASTER, MOMENTS
from train.collate import MicroBatch
from train.config import OptimizerConfig, TrainConfig
from train.engine_state import LiveFragment, LocalState, check_shapes, even_share, fill, trained_shapes
from train.memory import WIDENED
from train.processes import Processes, sum_over

Accept = Callable[[float], bool]
"""Whether to make an update whose gradients have this norm."""

_ADDED = 4096
"""Values whose squares are added up one after the other."""


def adamw(parameters: Iterable[torch.Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW of a run; the fused one, which nothing has to be compiled for."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def squared_norm(gradients: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Sum of the squares of all values, a float64 scalar on their device.

    A CPU adds up squares from front to back in float32, which over millions of values costs digits (6e-4 of a norm, where a
    million values are alike); so they are taken in short rows.
    """
    rows: list[torch.Tensor] = []
    for gradient in gradients:
        if gradient is not None:
            flat = gradient.reshape(-1)
            whole = len(flat) // _ADDED * _ADDED
            rows.append(torch.linalg.vector_norm(flat[:whole].view(-1, _ADDED), dim=1, dtype=torch.float32))
            rows.append(torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)[None])
    return torch.cat(rows).double().square().sum()


def clip(gradients: Iterable[torch.Tensor | None], norm: float, limit: float) -> None:
    """Scale gradients of this norm to the limit, if they are beyond it; as ``torch.nn.utils.clip_grad_norm_``."""
    scale = limit / (norm + 1e-6)
    if scale < 1 or math.isnan(scale):
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(scale)


class TorchEngine:
    """See :class:`train.engine.Engine`."""

    def __init__(self, network: nn.Module, config: TrainConfig, processes: Processes) -> None:
        self._processes, self._clip = processes, config.optimizer.clip
        self._network = network.to(processes.device)
        self._parameters = parameters_by_name(network)
        low = torch_dtype(config)
        self._is_low, self._adds_low = low != torch.float32, config.engine.gradients == "bf16"
        self._master: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            full = parameter.detach().float()  # the same memory, where it is float32 already
            parameter.data = full.to(low)
            self._master[name] = full if self._is_low else parameter
            if self._is_low and not self._adds_low:
                parameter.register_post_accumulate_grad_hook(_add_to(self._master[name]))
        self._shapes = trained_shapes(self._parameters)
        self._optimizer = adamw(self._master.values(), config.optimizer)

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        return self._network(batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss to those of the step."""
        del last
        loss.backward()

    @torch.no_grad()
    def step(self, lr: float, *, accept: Accept | None = None) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping. See :class:`train.engine.Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        gradients = [self._summed_gradient(name) for name in self._master]
        norm = float(squared_norm(gradients).sqrt())
        if accept is None or accept(norm):
            self._update(norm)
            self._round_master_into_weights()
        for owner in (*self._parameters.values(), *self._master.values()):
            owner.grad = None
        return norm

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; the same on each of them."""
        return sum_over(self._processes, values)

    def export_state(self) -> LocalState:
        """This process's share of the state, as views of the live tensors; no process waits for another."""
        steps = [self._moments_of(master)["step"] for master in self._master.values()]
        share = even_share(self._shapes, rank=self._processes.rank, world_size=self._processes.world_size)
        fragments = [self._fragment(name, start, stop) for name, start, stop in share]
        return LocalState(int(steps[0]), self._shapes, fragments)

    def import_state(self, source: StateSource) -> None:
        """Continue from the state of any engine; every process reads all of it."""
        check_shapes(self._shapes, source)
        for master in self._master.values():
            self._moments_of(master)["step"].fill_(source.step)
        fill([self._fragment(name, 0, master.numel()) for name, master in self._master.items()], source)
        self._round_master_into_weights()

    def close(self) -> None:
        """Nothing holds the network but this engine."""

    def _fragment(self, name: str, start: int, stop: int) -> LiveFragment:
        master = self._master[name]
        whole = {MASTER: master.detach(), **{moment: self._moments_of(master)[moment] for moment in MOMENTS}}
        return LiveFragment(name, start, {kind: tensor.view(-1)[start:stop] for kind, tensor in whole.items()})

    def _moments_of(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's state of a parameter; made here, as its first step would, where there was none."""
        state = self._optimizer.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state |= {moment: torch.zeros_like(master) for moment in MOMENTS}
        return state

    def _summed_gradient(self, name: str) -> torch.Tensor:
        """Of this step, over all processes; zeros where nothing depended on the parameter."""
        owner = self._parameters[name] if self._adds_low else self._master[name]
        if owner.grad is None:
            owner.grad = torch.zeros_like(owner)
        return self.sum(owner.grad)

    def _update(self, norm: float) -> None:
        """AdamW with clipped gradients; narrow ones are widened for some parameters at a time: it skips who has none."""
        for part in _parts(self._master, self._parameters) if self._adds_low else [list(self._master)]:
            if self._adds_low:
                for name in part:
                    self._master[name].grad = _widened(self._parameters[name])
            clip([self._master[name].grad for name in part], norm, self._clip)
            self._optimizer.step()
            if self._adds_low:
                self._optimizer.zero_grad()

    @torch.no_grad()
    def _round_master_into_weights(self) -> None:
        if self._is_low:
            for name, parameter in self._parameters.items():
                parameter.copy_(self._master[name])


def _widened(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient in float32, taken away from its parameter."""
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None, "made when it was summed"
    return gradient.float()


def _add_to(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A hook that takes a parameter's gradient away and adds it to its master's."""

    def take(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None, "called when there is one"
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return take


def _parts(names: Iterable[str], parameters: dict[str, nn.Parameter]) -> Iterator[list[str]]:
    """Parameters in groups of about :data:`WIDENED` values."""
    part: list[str] = []
    values = 0
    for name in names:
        part.append(name)
        values += parameters[name].numel()
        if values >= WIDENED:
            yield part
            part, values = [], 0
    if part:
        yield part
