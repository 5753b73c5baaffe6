"""One step of a run with the real engine, thrown away: what ``--preflight`` ends with."""

from __future__ import annotations

import time

import torch

from train.bill import layout_of, memory_of
from train.memory import GIB
from train.outline import outline_run
from train.plan import Plan
from train.shape import Shape
from train.trainer import open_stream, rate, start, train_step


def try_one_step(plan: Plan) -> str:
    """Take the step that would come next; nothing is written. A line about it.

    Every process must call.
    """
    trainer = start(plan)
    device = trainer.processes.device
    with open_stream(trainer) as stream:
        begun = time.perf_counter()
        judged = train_step(trainer, stream.next(), rate(plan.config, min(trainer.first_step, plan.config.steps)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
    trainer.engine.close()
    tokens = plan.config.batch_rows * plan.sequence_length
    line = f"step {trainer.first_step} took {seconds:.2f} s ({tokens / seconds:,.0f} tokens/s), loss {judged.loss:.4g}"
    line += f", refused: {judged.refused}" if judged.refused else ""
    return line + (_gpu_memory(plan, device, trainer.processes.world_size) if device.type == "cuda" else "")


def _gpu_memory(plan: Plan, device: torch.device, world_size: int) -> str:
    """The most that tensors took, beside what was planned."""
    seen = torch.cuda.max_memory_allocated(device) / GIB
    if not isinstance(plan.shape, Shape):
        return f"; at most {seen:.2f} GiB"
    outline = outline_run(plan.config, where=str(plan.config.output))
    planned = memory_of(outline, layout_of(outline, world_size)).peak / GIB
    return f"; at most {seen:.2f} GiB, {planned:.2f} planned"
