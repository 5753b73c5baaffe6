"""The processes of a run: who they are, how they find each other, sums over them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed

from train.config import TrainConfig


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


def start_processes(config: TrainConfig) -> Processes:
    """Set threads and the process group of this process; call once, before there is an engine."""
    processes = Processes.from_environment()
    threads = config.engine.threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // processes.local_world_size))
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    if processes.world_size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if processes.device.type == "cuda" else "gloo")
    return processes


def stop_processes() -> None:
    """Leave the process group, if there are others in it.

    A group of one is kept: DeepSpeed remembers its groups for the life of the process and could not start again.
    """
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()


def sum_over(processes: Processes, values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, in place; the same on each of them."""
    if processes.world_size > 1:
        distributed.all_reduce(values)
    return values
