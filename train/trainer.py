"""The training loop: one screen, in the order things happen.

Rows come from a stream that is a pure function of the step, the learning rate is a function of the step, and the
engine's state is on disk by name; so a run that was killed continues as if it had not been, and running a finished run
again finds nothing to do.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from shards.errors import AnyGPTError
from shards.writer import commit_bytes
from train.checkpoint import read_run_state
from train.checkpoint_run import Saver, checkpoint_to_continue, differences, take_up
from train.checkpoint_signals import StopRequest
from train.collate import HostBatch, micro_batches
from train.config import TrainConfig
from train.engine import Engine, Processes, make_engine, start_processes
from train.export import export_checkpoint
from train.gauges import Gauges
from train.metrics import RunLog
from train.objectives import Objective, open_objective
from train.plan import Plan, config_json, micro_batch_rows
from train.schedule import learning_rate
from train.stream import RowStream


@dataclass(frozen=True, slots=True)
class Trainer:
    """A run that is ready for ``first_step``.

    Attributes:
        differs: what differs from the run that is continued, and is allowed to.
    """

    plan: Plan
    processes: Processes
    objective: Objective
    network: nn.Module
    engine: Engine
    gauges: Gauges
    micro_rows: int
    first_step: int
    stop: StopRequest
    differs: list[str]


def train(plan: Plan, *, limit: int | None = None) -> int:
    """Train to the last step, to step ``limit``, or until a signal; continue from the newest checkpoint of the run.

    Returns:
        The last step that is done.
    """
    config = plan.config
    stop = min(config.steps, limit or config.steps)
    trainer = start(plan)
    with ExitStack() as stack:
        log = stack.enter_context(_open_log(trainer))
        stream = stack.enter_context(_open_stream(trainer))
        saver = stack.enter_context(Saver(plan, trainer.engine, trainer.processes, trainer.gauges.to_json))
        stack.enter_context(trainer.stop)
        for step in range(trainer.first_step, stop + 1):
            lr, waited = rate(config, step), stream.wait_s
            norm = train_step(trainer, stream.next(), lr)
            trainer.gauges.step_done(wait_s=stream.wait_s - waited)
            log.advance()
            _check_finite(norm, step, config)
            if step % config.log.every == 0 or step == config.steps:
                log.write(trainer.gauges.read(step, lr=lr, grad_norm=norm))
            is_asked = trainer.stop.is_agreed()
            if step % config.checkpoint.every == 0 or step == stop or is_asked:
                log.sync()
                saver.save(step)
            saver.log(log.event)
            if is_asked:
                log.event("stopping", step=step, reason=trainer.stop.name)
                stop = step
                break
        saver.wait()
        saver.log(log.event)
        if stop == config.steps:
            _export(trainer)
            log.event("exported", folder=str(plan.final))
    return max(stop, trainer.first_step - 1)


def start(plan: Plan) -> Trainer:
    """Weights, engine and gauges of a run, from its newest checkpoint if it has one.

    Raises:
        FingerprintMismatch: if the checkpoint belongs to a run on other data, or of another model.
    """
    config = plan.config
    processes = start_processes(config)
    checkpoint = checkpoint_to_continue(plan, processes)
    run = read_run_state(checkpoint) if checkpoint else None
    micro_rows = micro_batch_rows(config, processes.world_size)
    objective = open_objective(plan)
    network = objective.build()
    engine = make_engine(network, config, processes, micro_batch_rows=micro_rows)
    if checkpoint:
        take_up(checkpoint, engine, processes)
    first, before = processes.rank == 0, run.log if run else {}
    gauges = Gauges(
        plan, objective.loss_groups, device=processes.device, first_process=first, total=engine.sum, before=before
    )
    stop = StopRequest(listen=config.checkpoint.on_signal == "save")
    first_step = run.step + 1 if run else 1
    return Trainer(
        plan, processes, objective, network, engine, gauges, micro_rows, first_step, stop, differences(plan, checkpoint)
    )


def train_step(trainer: Trainer, batch: HostBatch, lr: float) -> float:
    """One update from this process's rows; the gradient norm."""
    engine, device, masking = trainer.engine, trainer.processes.device, trainer.objective.masking
    # Whether anyone was asked to stop travels with the number of targets: one exchange, and all stop after this step.
    sums = engine.sum(torch.tensor([batch.num_targets, trainer.stop.heard], dtype=torch.float32, device=device))
    trainer.stop.tell(sums[1])
    targets = sums[0].clamp(min=1)
    passes = len(batch.token_ids) // trainer.micro_rows
    for number, micro in enumerate(micro_batches(batch, trainer.micro_rows, device, masking=masking), start=1):
        loss, losses = engine.forward(micro)
        engine.backward(loss / targets, last=number == passes)
        trainer.gauges.losses.add(losses, micro.labels, micro.datasets)
    return engine.step(lr)


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step of this run."""
    return learning_rate(
        step,
        steps=config.steps,
        peak=config.optimizer.lr,
        warmup=config.schedule.warmup,
        final=config.schedule.final_lr,
    )


def _open_log(trainer: Trainer) -> RunLog:
    config, silent = trainer.plan.config, trainer.processes.rank != 0
    log = RunLog(
        config.output,
        steps=config.steps,
        first_step=trainer.first_step,
        tensorboard=config.log.tensorboard,
        silent=silent,
    )
    if not silent:
        commit_bytes(config.output / "config.json", config_json(config).encode())
    log.event("start", step=trainer.first_step, processes=trainer.processes.world_size, threads=torch.get_num_threads())
    if trainer.differs:
        log.event("resumed_with_other", names=trainer.differs)
    return log


def _open_stream(trainer: Trainer) -> RowStream:
    plan, processes = trainer.plan, trainer.processes
    return RowStream(
        plan.mixture,
        plan.datasets,
        batch_rows=plan.config.batch_rows,
        attention=trainer.objective.attention,
        masking=trainer.objective.masking,
        first_step=trainer.first_step,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def _check_finite(norm: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(norm):
        raise AnyGPTError(
            f"{config.output}: step {step}: expected a finite gradient norm, found {norm}; "
            "lower optimizer.lr or lengthen schedule.warmup and run again, which continues from the last checkpoint"
        )


def _export(trainer: Trainer) -> None:
    if trainer.processes.rank == 0:
        export_checkpoint(trainer.plan, folder=trainer.plan.final)
