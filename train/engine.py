"""How gradients become an update: DeepSpeed behind six methods, and plain torch behind the same six.

The only file that imports DeepSpeed. What is switched off or set here is what breaks on a machine without a GPU:

* its shared-memory collective is compiled at start-up on CPUs and would need ninja and a C++ compiler;
* without RANK, WORLD_SIZE, ... it looks for MPI, so a single process gets them set;
* its own AdamW is compiled too; torch's fused one is not;
* ZeRO-0 with bf16 has other numerics, so there is no such choice.

An optimizer's state leaves an engine as the fragments that this process owns (:mod:`train.engine_state`), and enters it
from any :class:`train.checkpoint.StateSource`, by parameter name, whatever the number of processes or the ZeRO stage.
Weights in lower precision are always the rounding of the float32 master, and not stored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import distributed, nn

from train.backbone import parameters_by_name, torch_dtype
from train.checkpoint import StateSource
from train.checkpoint_files import MASTER, MOMENTS
from train.collate import MicroBatch
from train.config import OptimizerConfig, TrainConfig
from train.engine_state import (
    LiveFragment,
    LocalState,
    check_shapes,
    even_share,
    fill,
    partitioned_fragments,
    sliced_fragments,
    trained_shapes,
)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run, as torchrun and its like describe them in the environment."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> Processes:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process when they are unset."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        return cls(int(os.environ.get("RANK", "0")), world_size, local_rank, local, device)


class Engine(Protocol):
    """Forward, backward, update; sums over processes; state out and in."""

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss; ``last`` in the forward passes of a step. Sums over processes too."""
        ...

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping."""
        ...

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; the same on each of them."""
        ...

    def export_state(self) -> LocalState:
        """This process's fragments of the state, as views of the live tensors; no process waits for another."""
        ...

    def import_state(self, source: StateSource) -> None:
        """Continue from the state of any engine; reads what this process needs of it. All processes must call."""
        ...


def start_processes(config: TrainConfig) -> Processes:
    """Set threads and the process group of this process; call once before :func:`make_engine`."""
    processes = Processes.from_environment()
    threads = config.engine.threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // processes.local_world_size))
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    if processes.world_size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if processes.device.type == "cuda" else "gloo")
    return processes


def make_engine(network: nn.Module, config: TrainConfig, processes: Processes, *, micro_batch_rows: int) -> Engine:
    """The engine the config asks for."""
    if config.engine.kind == "torch":
        return TorchEngine(network, config, processes)
    return DeepSpeedEngine(network, config, processes, micro_batch_rows=micro_batch_rows)


def stop_processes() -> None:
    """Leave the process group, if there are others in it.

    A group of one is kept: DeepSpeed remembers its groups for the life of the process and could not start again.
    """
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()


class DeepSpeedEngine:
    """ZeRO-1, 2 or 3 in bf16 or float32."""

    def __init__(self, network: nn.Module, config: TrainConfig, processes: Processes, *, micro_batch_rows: int) -> None:
        self._processes, self._dtype = processes, torch_dtype(config)
        self._stage = config.engine.zero
        deepspeed = _import_deepspeed(processes)
        optimizer = _adamw(network.parameters(), config.optimizer)
        self._engine: Any = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            model_parameters=network.parameters(),
            config=_deepspeed_config(config, processes, micro_batch_rows),
            dist_init_required=False,
        )[0]
        self._parameters = {name: p for name, p in parameters_by_name(self._engine.module).items() if p.requires_grad}
        self._shapes = trained_shapes(self._parameters)

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss; DeepSpeed averages over processes, which is undone here."""
        self._engine.backward(loss * self._processes.world_size, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the forward pass; the update comes at the last one

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        assert self._engine.is_gradient_accumulation_boundary(), "a step ends after its last forward pass"
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; the same on each of them."""
        return _sum(values, self._processes)

    def export_state(self) -> LocalState:
        """This process's fragments of the state, as views of the live tensors; no process waits for another."""
        if not self._inner.state:
            self._make_empty_moments(0)
        steps = {int(state["step"]) for state in self._inner.state.values()}
        assert len(steps) == 1, f"the partitions of one optimizer are at different steps: {steps}"
        return LocalState(steps.pop(), self._shapes, self._own_fragments())

    def import_state(self, source: StateSource) -> None:
        """Continue from the state of any engine; reads what this process needs of it. All processes must call."""
        check_shapes(self._shapes, source)
        self._make_empty_moments(source.step)
        fill(self._own_fragments(), source)
        self._round_master_into_weights()

    def _own_fragments(self) -> list[LiveFragment]:
        if self._stage == 3:
            return sliced_fragments(self._parameters, self._engine.optimizer)
        return partitioned_fragments(self._parameters)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer inside DeepSpeed's; it sees flat partitions."""
        return self._engine.optimizer.optimizer

    def _make_empty_moments(self, step: int) -> None:
        """Give every partition the state that AdamW makes in its first step, so that there is something to fill."""
        zero = self._engine.optimizer
        partitions = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for partition in partitions:
            self._inner.state[partition] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=partition.device),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        if self._stage < 3:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _round_master_into_weights(self) -> None:
        zero = self._engine.optimizer
        if self._stage < 3:
            zero.update_lp_params()  # each process rounds its own partition, then all gather the rest
            return
        for weights, master in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
            weights.data.copy_(master.data)
        if zero.persistent_parameters:
            # Small parameters are kept whole on every process; their other slices have changed, too.
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


class TorchEngine:
    """The same arithmetic in a page of torch: gradients summed over processes, float32 master weights, fused AdamW."""

    def __init__(self, network: nn.Module, config: TrainConfig, processes: Processes) -> None:
        self._processes, self._clip = processes, config.optimizer.clip
        self._network = network.to(processes.device)
        self._parameters = parameters_by_name(network)
        self._master = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        for parameter in self._parameters.values():
            parameter.data = parameter.data.to(torch_dtype(config))
        self._shapes = trained_shapes(self._parameters)
        self._optimizer = _adamw(self._master.values(), config.optimizer)

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        return self._network(batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss to those of the master weights."""
        loss.backward()
        for name, parameter in self._parameters.items():
            gradient, master = parameter.grad, self._master[name]
            if gradient is not None:
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping."""
        for master in self._master.values():
            master.grad = self.sum(torch.zeros_like(master) if master.grad is None else master.grad)
        norm = torch.nn.utils.clip_grad_norm_(self._master.values(), self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._round_master_into_weights()
        return float(norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; the same on each of them."""
        return _sum(values, self._processes)

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

    def _fragment(self, name: str, start: int, stop: int) -> LiveFragment:
        master = self._master[name]
        whole = {MASTER: master, **{moment: self._moments_of(master)[moment] for moment in MOMENTS}}
        return LiveFragment(name, start, {kind: tensor.view(-1)[start:stop] for kind, tensor in whole.items()})

    def _moments_of(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's state of a parameter; made here, as its first step would, where there was none."""
        state = self._optimizer.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state |= {moment: torch.zeros_like(master) for moment in MOMENTS}
        return state

    def _round_master_into_weights(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._master[name])


def _import_deepspeed(processes: Processes) -> Any:
    """Import and prepare DeepSpeed; late, because a plain-torch run should not wait seconds for it."""
    if processes.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in {
        "RANK": str(processes.rank),
        "WORLD_SIZE": str(processes.world_size),
        "LOCAL_RANK": str(processes.local_rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        os.environ.setdefault(name, value)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        if not distributed.is_initialized():
            store = distributed.HashStore()
            backend = "nccl" if processes.device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        deepspeed.init_distributed(verbose=False)
    return deepspeed


def _deepspeed_config(config: TrainConfig, processes: Processes, micro_batch_rows: int) -> dict[str, Any]:
    passes = config.batch_rows // (micro_batch_rows * processes.world_size)
    low = config.engine.dtype == "bf16"
    return {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": {"stage": config.engine.zero},
        "bf16": {"enabled": low},
        "steps_per_print": 1 << 60,
    }


def _adamw(parameters: Iterable[torch.Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def _sum(values: torch.Tensor, processes: Processes) -> torch.Tensor:
    if processes.world_size > 1:
        distributed.all_reduce(values)
    return values
