"""The training loop: one screen, in the order things happen.

Rows come from a stream that is a pure function of the step, the learning rate is a function of the step, and the
engine's state is on disk by name; so a run that was killed continues as if it had not been, and running a finished run
again finds nothing to do.
"""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from shards.errors import AnyGPTError
from shards.writer import commit_bytes
from train.checkpoint import (
    RunState,
    check_same_run,
    newest_checkpoint,
    publish_folder,
    read_optimizer_state,
    read_run_state,
    save_checkpoint,
)
from train.collate import HostBatch, micro_batches
from train.config import TrainConfig
from train.engine import Engine, Processes, make_engine, start_processes
from train.gauges import Gauges
from train.metrics import RunLog
from train.objectives import Objective, open_objective
from train.plan import Plan, config_json, micro_batch_rows
from train.schedule import learning_rate
from train.stream import RowStream


@dataclass(frozen=True, slots=True)
class Trainer:
    """A run that is ready for ``first_step``."""

    plan: Plan
    processes: Processes
    objective: Objective
    network: nn.Module
    engine: Engine
    gauges: Gauges
    micro_rows: int
    first_step: int


def train(plan: Plan, *, limit: int | None = None) -> int:
    """Train to the last step, or to step ``limit``; continue from the newest checkpoint of the run.

    Returns:
        The last step that is done.
    """
    config = plan.config
    stop = min(config.steps, limit or config.steps)
    trainer = start(plan)
    with ExitStack() as stack:
        log = stack.enter_context(_open_log(trainer))
        stream = stack.enter_context(_open_stream(trainer))
        for step in range(trainer.first_step, stop + 1):
            lr, waited = rate(config, step), stream.wait_s
            norm = train_step(trainer, stream.next(), lr)
            trainer.gauges.step_done(wait_s=stream.wait_s - waited)
            log.advance()
            _check_finite(norm, step, config)
            if step % config.log.every == 0 or step == config.steps:
                log.write(trainer.gauges.read(step, lr=lr, grad_norm=norm))
            if step % config.checkpoint.every == 0 or step == stop:
                log.sync()
                _save(trainer, step)
                log.event("checkpoint", step=step)
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
    checkpoint = newest_checkpoint(plan.checkpoints)
    run = read_run_state(checkpoint) if checkpoint else RunState(0, plan.fingerprints_at(0))
    check_same_run(plan.checkpoints, run.fingerprints, plan.fingerprints_at(run.step))
    processes = start_processes(config)
    micro_rows = micro_batch_rows(config, processes.world_size)
    objective = open_objective(plan)
    network = objective.build()
    engine = make_engine(network, config, processes, micro_batch_rows=micro_rows)
    if checkpoint:
        engine.import_state(read_optimizer_state(checkpoint))
    first = processes.rank == 0
    gauges = Gauges(
        plan, objective.loss_groups, device=processes.device, first_process=first, total=engine.sum, before=run.log
    )
    return Trainer(plan, processes, objective, network, engine, gauges, micro_rows, run.step + 1)


def train_step(trainer: Trainer, batch: HostBatch, lr: float) -> float:
    """One update from this process's rows; the gradient norm."""
    engine, device, masking = trainer.engine, trainer.processes.device, trainer.objective.masking
    targets = engine.sum(torch.tensor(float(batch.num_targets), device=device)).clamp(min=1)
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


def _save(trainer: Trainer, step: int) -> None:
    config, figures, state = trainer.plan.config, trainer.gauges.to_json(), trainer.engine.export_state()
    if state is not None:
        run = RunState(step, trainer.plan.fingerprints_at(step), figures, json.loads(config_json(config)))
        save_checkpoint(trainer.plan.checkpoints, state, run, keep=config.checkpoint.keep)


def _export(trainer: Trainer) -> None:
    state, plan = trainer.engine.export_state(), trainer.plan
    if state is not None:
        publish_folder(plan.final, lambda folder: trainer.objective.export(trainer.network, state.master, folder))
