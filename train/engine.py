"""How gradients become an update: DeepSpeed behind six methods, and plain torch behind the same six (train.torch_engine).

The only file that imports DeepSpeed. What is switched off or set here is what breaks on a machine without a GPU:

* its shared-memory collective is compiled at start-up on CPUs and would need ninja and a C++ compiler;
* without RANK, WORLD_SIZE, ... it looks for MPI, so a single process gets them set;
* its own AdamW is compiled too, also the one for offloaded state; torch's fused one is not;
* ZeRO-0 with bf16 has other numerics, so there is no such choice.

An optimizer's state leaves an engine as the fragments that this process owns (:mod:`train.engine_state`), and enters it
from any :class:`train.checkpoint.StateSource`, by parameter name, whatever the number of processes or the ZeRO stage.
Weights in lower precision are always the rounding of the float32 master, and not stored.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Protocol

import torch
from torch import distributed, nn

from shards.errors import ConfigError
from train.backbone import parameters_by_name
from train.checkpoint import StateSource
from train.checkpoint_files import MOMENTS
from train.collate import MicroBatch
from train.config import EngineConfig, TrainConfig
from train.engine_state import (
    LiveFragment,
    LocalState,
    check_shapes,
    fill,
    partitioned_fragments,
    sliced_fragments,
    trained_shapes,
)
from train.processes import Processes, start_processes, stop_processes, sum_over
from train.torch_engine import Accept, TorchEngine, adamw, clip, squared_norm

__all__ = [
    "Accept",
    "DeepSpeedEngine",
    "Engine",
    "Processes",
    "TorchEngine",
    "make_engine",
    "start_processes",
    "stop_processes",
]


class Engine(Protocol):
    """Forward, backward, update; sums over processes; state out and in."""

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss; ``last`` in the forward passes of a step. Sums over processes too."""
        ...

    def step(self, lr: float, *, accept: Accept | None = None) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping.

        Args:
            accept: asked once, with the norm, before anything changes; False leaves weights, moments and their step
                counts as they are. It must answer the same on every process.
        """
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

    def close(self) -> None:
        """Let go of the network, so that another run in this process finds its memory; the engine is of no use then."""
        ...


def make_engine(network: nn.Module, config: TrainConfig, processes: Processes, *, micro_batch_rows: int) -> Engine:
    """The engine the config asks for."""
    if config.engine.kind == "torch":
        return TorchEngine(network, config, processes)
    return DeepSpeedEngine(network, config, processes, micro_batch_rows=micro_batch_rows)


class DeepSpeedEngine:
    """ZeRO-1, 2 or 3 in bf16 or float32."""

    def __init__(self, network: nn.Module, config: TrainConfig, processes: Processes, *, micro_batch_rows: int) -> None:
        self._processes, self._stage = processes, config.engine.zero
        self._clip = config.optimizer.clip if _clips_itself(config.engine) else None
        deepspeed = _import_deepspeed(processes)
        optimizer = adamw(network.parameters(), config.optimizer)
        self._engine: Any = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            model_parameters=network.parameters(),
            config=_deepspeed_config(config, processes, micro_batch_rows),
            dist_init_required=False,
        )[0]
        if self._stage < 3 and self._engine.optimizer.gradient_average:
            # An older one reads over the key; every gradient would be too small by the number of processes.
            raise ConfigError(
                f"engine.kind: expected a DeepSpeed that knows gradient_allreduce_op, found {deepspeed.__version__}; "
                "install the version of requirements.lock, or take kind = 'torch'"
            )
        self._parameters = {name: p for name, p in parameters_by_name(self._engine.module).items() if p.requires_grad}
        self._shapes = trained_shapes(self._parameters)
        self._accept: Accept | None = None
        self._accepted: bool | None = None
        self._found_norm = math.inf
        # DeepSpeed knows the norm only in the middle of its step; but it updates through the optimizer it was given, and
        # without that it rounds and gathers the weights that are there already.
        self._update = self._inner.step
        self._inner.step = self._update_if_accepted  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss, and the loss of every target, as the objective's network gives them."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a summed loss; where DeepSpeed averages over processes that is undone here."""
        averaged = self._processes.world_size if self._stage == 3 else 1
        self._engine.backward(loss * averaged if averaged > 1 else loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the forward pass; the update comes at the last one

    def step(self, lr: float, *, accept: Accept | None = None) -> float:
        """Clip, update, forget the gradients; the gradient norm before clipping. See :class:`Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        assert self._engine.is_gradient_accumulation_boundary(), "a step ends after its last forward pass"
        self._accept, self._accepted, self._found_norm = accept, None, math.inf
        self._engine.step()
        self._is_accepted()  # where DeepSpeed finds a norm that is not finite it updates nothing, and asks nobody
        return self._norm()

    def _update_if_accepted(self, closure: Any = None) -> None:
        del closure
        if self._clip is None:
            if self._is_accepted():
                self._update()
            return
        gradients = [partition.grad for group in self._inner.param_groups for partition in group["params"]]
        self._found_norm = float(self.sum(squared_norm(gradients)).sqrt())
        if self._is_accepted():
            clip(gradients, self._found_norm, self._clip)
            self._update()

    def _is_accepted(self) -> bool:
        if self._accepted is None:  # a step updates one partition after the other
            self._accepted = self._accept is None or self._accept(self._norm())
            if not self._accepted and not self._inner.state:
                self._make_empty_moments(0)  # after its first step, made or not, DeepSpeed wants to find some
        return self._accepted

    def _norm(self) -> float:
        return self._found_norm if self._clip is not None else float(self._engine.optimizer._global_grad_norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes; the same on each of them."""
        return sum_over(self._processes, values)

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

    def close(self) -> None:
        """Let go of the network: DeepSpeed's hooks on its parameters would keep all of it alive."""
        self._engine.destroy()

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
    ours = _clips_itself(config.engine)
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": 0.0 if ours else config.optimizer.clip,
        # A loss is divided by the targets of all processes, so gradients are summed; ZeRO-3 can only average.
        "gradient_allreduce_op": "sum" if config.engine.zero < 3 else "mean",
        "zero_optimization": _zero_config(config.engine, processes) | ({"compute_grad_norm": False} if ours else {}),
        "bf16": {"enabled": low, "check_grad_overflow": not ours} if low else {"enabled": False},
        "steps_per_print": 1 << 60,
        # Offloaded state is updated by torch's AdamW; DeepSpeed's would be compiled, and insists otherwise.
        "zero_force_ds_cpu_optimizer": False,
    }
    if low and config.engine.gradients is not None:
        found["data_types"] = {"grad_accum_dtype": config.engine.gradients}
    return found


def _clips_itself(engine: EngineConfig) -> bool:
    """Whether the norm is taken here, of the flat partition: DeepSpeed reads every gradient four times for it.

    It cannot be under ZeRO-3, whose partitions are updated one after the other, nor where its state is offloaded.
    """
    return engine.zero < 3 and engine.offload == "none"


def _zero_config(engine: EngineConfig, processes: Processes) -> dict[str, Any]:
    on_gpu = processes.device.type == "cuda"
    overlap = engine.overlap if engine.overlap is not None else on_gpu and processes.world_size > 1
    # A process that is alone owns every gradient: there is nothing to give away after each pass, and ZeRO-1 adds up the
    # same sums without copying them. (With sums in float32 DeepSpeed has an optimizer of its own for ZeRO-1.)
    alone = processes.world_size == 1
    as_first = alone and engine.zero == 2 and engine.gradients != "fp32"
    found: dict[str, Any] = {
        "stage": 1 if as_first else engine.zero,
        "reduce_scatter": not alone,  # one collective over the bucket where it is, not over a flattened copy
        "reduce_bucket_size": engine.reduce_bucket,
        "allgather_bucket_size": engine.gather_bucket,
        "overlap_comm": overlap,
        "stage3_prefetch_bucket_size": engine.prefetch_bucket,
        "stage3_param_persistence_threshold": engine.persistent_below,
        "stage3_max_live_parameters": engine.max_live,
    }
    memory = {"device": "cpu", "pin_memory": on_gpu}
    if engine.offload != "none":
        found["offload_optimizer"] = memory
    if engine.offload == "parameters":
        found["offload_param"] = memory
    return found
