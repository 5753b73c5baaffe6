"""The training loop: one screen, in the order things happen.

Rows come from a stream that is a pure function of the step, the learning rate is a function of the step, and the
engine's state is on disk by name; so a run that was killed continues as if it had not been, and running a finished run
again finds nothing to do.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shards.writer import commit_bytes
from train.checkpoint import read_run_state
from train.checkpoint_run import Saver, checkpoint_to_continue, differences, take_up
from train.checkpoint_signals import StopRequest
from train.collate import HostBatch, micro_batches
from train.config import TrainConfig
from train.dumps import dump_folder, gather_losses, write_dump
from train.engine import Engine, Processes, make_engine, start_processes
from train.export import export_checkpoint
from train.gauges import Gauges
from train.guards import Guard, Judgement
from train.metrics import RunLog
from train.objectives import Objective, open_objective
from train.plan import Plan, config_json, micro_batch_rows
from train.profiling import Profile
from train.schedule import learning_rate
from train.stream import RowStream
from train.validation import Validation, refuse_validation_rows


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
    guard: Guard
    validation: Validation
    micro_rows: int
    first_step: int
    saver: Saver
    stop: StopRequest
    differs: list[str]


def train(plan: Plan, *, limit: int | None = None) -> int:
    """Train to the last step, to step ``limit``, or until a signal; continue from the newest checkpoint of the run.

    Returns:
        The last step that is done.
    """
    config = plan.config
    stop, is_due = min(config.steps, limit or config.steps), False
    trainer = start(plan)
    with ExitStack() as stack:
        log = stack.enter_context(_open_log(trainer))
        stream = stack.enter_context(open_stream(trainer))
        saver = stack.enter_context(trainer.saver)
        profile = stack.enter_context(Profile(config.profile, config.output, trainer.processes))
        stack.enter_context(trainer.stop)
        for step in range(trainer.first_step, stop + 1):
            profile.before(step)
            lr, waited = rate(config, step), stream.wait_s
            batch = stream.next()
            trainer.gauges.waited(stream.wait_s - waited)
            judged = train_step(trainer, batch, lr)
            log.advance()
            if judged.refused:
                _report_skipped(trainer, log, batch, judged, step=step, lr=lr)
            if step % config.log.every == 0 or step == config.steps:
                log.write(trainer.gauges.read(step, lr=lr))
            if trainer.validation.is_due(step):
                _validate(trainer, log, step)
            is_asked = trainer.stop.is_agreed()
            is_due = is_due or step % config.checkpoint.every == 0
            # Weights that were followed by a skipped step may be at fault themselves: the next good step saves.
            if (is_due and not judged.refused) or step == stop or is_asked:
                log.sync()
                saver.save(step)
                is_due = False
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
    trainer.engine.close()
    return max(stop, trainer.first_step - 1)


def start(plan: Plan) -> Trainer:
    """Weights, engine and gauges of a run, from its newest checkpoint if it has one.

    Raises:
        FingerprintMismatch: if the checkpoint belongs to a run on other data, or of another model.
    """
    config = plan.config
    refuse_validation_rows(plan)
    processes = start_processes(config)
    checkpoint = checkpoint_to_continue(plan, processes)
    run = read_run_state(checkpoint) if checkpoint else None
    micro_rows = micro_batch_rows(config, processes.world_size)
    objective = open_objective(plan)
    network = objective.build()
    engine = make_engine(network, config, processes, micro_batch_rows=micro_rows)
    if checkpoint:
        take_up(checkpoint, engine, processes)
    before = run.log if run else {}
    gauges = Gauges(plan, objective.loss_groups, processes=processes, total=engine.sum, before=before)
    guard = Guard(config.guards, before.get("guard", {}))
    validation = Validation(plan, objective, network, engine, processes, micro_rows=micro_rows)

    def figures() -> dict[str, Any]:
        return gauges.to_json() | {"guard": guard.to_json()}

    stop = StopRequest(listen=config.checkpoint.on_signal == "save")
    first_step = run.step + 1 if run else 1
    return Trainer(
        plan,
        processes,
        objective,
        network,
        engine,
        gauges,
        guard,
        validation,
        micro_rows,
        first_step,
        Saver(plan, engine, processes, figures),
        stop,
        differences(plan, checkpoint),
    )


def train_step(trainer: Trainer, batch: HostBatch, lr: float) -> Judgement:
    """One update from this process's rows, unless the guard is against it."""
    engine, device, masking = trainer.engine, trainer.processes.device, trainer.objective.masking
    # Whether anyone was asked to stop travels with the number of targets: one exchange, and all stop after this step.
    sums = engine.sum(torch.tensor([batch.num_targets, trainer.stop.heard], dtype=torch.float32, device=device))
    trainer.stop.tell(sums[1])
    targets = sums[0].clamp(min=1)
    passes = len(batch.token_ids) // trainer.micro_rows
    total = torch.zeros((), dtype=torch.float64, device=device)
    trainer.gauges.begin(batch)
    for number, micro in enumerate(micro_batches(batch, trainer.micro_rows, device, masking=masking), start=1):
        loss, losses = engine.forward(micro)
        engine.backward(loss / targets, last=number == passes)
        total += loss.detach()
        trainer.gauges.add(losses)
    judged: list[Judgement] = []

    def accept(norm: float) -> bool:
        # The mean of the norm over processes, too: one that differs in its last digit is judged alike by all.
        norms = torch.tensor(norm / trainer.processes.world_size, dtype=torch.float64, device=device)
        loss, mean_norm = engine.sum(torch.stack([total / targets, norms])).tolist()
        judged.append(trainer.guard.judge(loss, mean_norm))
        return not judged[0].refused

    trainer.saver.wait_for_copy()  # of what the update is about to change
    engine.step(lr, accept=accept)
    trainer.gauges.end(judged[0])
    return judged[0]


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
        wandb=config.log.wandb,
        config=config.model_dump(mode="json"),
    )
    if not silent:
        commit_bytes(config.output / "config.json", config_json(config).encode())
    log.event("start", step=trainer.first_step, processes=trainer.processes.world_size, threads=torch.get_num_threads())
    if trainer.differs:
        log.event("resumed_with_other", names=trainer.differs)
    return log


def open_stream(trainer: Trainer) -> RowStream:
    """This process's rows, from the first step that is left on; a context manager."""
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


def _report_skipped(
    trainer: Trainer, log: RunLog, batch: HostBatch, judged: Judgement, *, step: int, lr: float
) -> None:
    """Dump and log a step that was left out; stop when there were too many in a row."""
    config, folder = trainer.plan.config, None
    if config.guards.dump:
        found = torch.cat(trainer.gauges.losses)
        losses = gather_losses(trainer.plan, batch, found, step=step, total=trainer.engine.sum)
        folder = dump_folder(config.output, step)
        try:
            if trainer.processes.rank == 0:
                write_dump(folder, trainer.plan, losses, judged, step=step, lr=lr)
        except OSError as error:  # a full disk: the run can do without
            log.event("dump_failed", step=step, error=str(error))
    log.event("skipped", step=step, reason=judged.refused, dump=str(folder or ""))
    trainer.guard.check(config.output, folder)


def _validate(trainer: Trainer, log: RunLog, step: int) -> None:
    figures = trainer.validation.measure(step)
    trainer.gauges.pause(figures.seconds)
    log.write(figures)


def _export(trainer: Trainer) -> None:
    if trainer.processes.rank == 0:
        export_checkpoint(trainer.plan, folder=trainer.plan.final)
