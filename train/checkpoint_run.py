"""A run and its checkpoints: which one it continues, how it takes it up, and saving the next ones beside the training."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from train.checkpoint import (
    RunState,
    StoredTensors,
    check_same_run,
    checkpoint_name,
    newest_checkpoint,
    read_run_state,
    step_of,
)
from train.checkpoint_writer import CheckpointWriter, Retention, Snapshot, remove_leftovers
from train.engine import Engine, Processes
from train.engine_state import Staging, agree, anyone, random_states, restore_random_states
from train.plan import Plan, config_json

DAMAGED_SUFFIX = ".damaged"
"""Of a checkpoint whose bytes are not those that were written; nobody reads it, nobody removes it."""


def checkpoint_to_continue(plan: Plan, processes: Processes) -> Path | None:
    """The newest checkpoint that is whole to the last byte, as the first process sees it. All must call.

    The processes share the reading, and read again what they need; a damaged one is put aside under another name. What
    killed runs left behind is removed.

    Raises:
        FingerprintMismatch: it belongs to a run on other data, or of another model.
    """
    if processes.rank == 0:
        remove_leftovers(plan.checkpoints)
    while True:
        # Machines may see a shared folder at different moments; and nobody writes before the first has cleaned up.
        found = newest_checkpoint(plan.checkpoints) if processes.rank == 0 else None
        step = agree(step_of(found) if found else 0, processes.device)
        checkpoint = plan.checkpoints / checkpoint_name(step) if step else None
        differences(plan, checkpoint)
        if checkpoint is None or not plan.config.resume.verify or not _is_damaged(checkpoint, processes):
            return checkpoint


def _is_damaged(checkpoint: Path, processes: Processes) -> bool:
    """Whether any process finds other bytes than were written; then it is put aside."""
    damage = StoredTensors(checkpoint).damage(rank=processes.rank, world_size=processes.world_size)
    if damage is not None:
        sys.stderr.write(f"{damage}\n")
    if not anyone(damage is not None, processes.device):
        return False
    if processes.rank == 0:
        aside = checkpoint.with_name(f"{checkpoint.name}{DAMAGED_SUFFIX}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.replace(aside)
        sys.stderr.write(f"{aside}: put aside; the run continues from the checkpoint before it, if there is one\n")
    return True


def differences(plan: Plan, checkpoint: Path | None) -> list[str]:
    """What differs between a run and the checkpoint it continues, and is allowed to.

    Raises:
        FingerprintMismatch: something differs that is not.
    """
    if checkpoint is None:
        return []
    run = read_run_state(checkpoint)
    expected = plan.fingerprints_at(run.step)
    return check_same_run(plan.checkpoints, run.fingerprints, expected, allow=plan.config.resume.allow)


def take_up(checkpoint: Path, engine: Engine, processes: Processes) -> None:
    """Put the tensors of a checkpoint into an engine; each process reads what it needs. All must call.

    Random states come back where the processes are as many as they were.
    """
    stored = StoredTensors(checkpoint)
    engine.import_state(stored)
    if stored.world_size == processes.world_size:
        restore_random_states(stored.random_states(processes.rank))


class Saver:
    """A context manager that saves a run; leaving it waits until all is written.

    Args:
        figures: what to store with a checkpoint of the log's open interval; all processes are asked together.
    """

    def __init__(self, plan: Plan, engine: Engine, processes: Processes, figures: Callable[[], dict[str, Any]]) -> None:
        self._plan, self._engine, self._figures = plan, engine, figures
        self._staging = Staging()
        settings = plan.config.checkpoint
        self._asynchronous = settings.asynchronous
        self._writer = CheckpointWriter(
            plan.checkpoints,
            rank=processes.rank,
            world_size=processes.world_size,
            token=agree(secrets.randbits(31), processes.device),
            retention=Retention(settings.keep, settings.keep_every),
            timeout_s=settings.timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def save(self, step: int) -> None:
        """Copy the state after ``step`` and write it, in the background; a checkpoint being written is waited for.

        Raises:
            CheckpointError: the one before could not be written.
        """
        plan, state = self._plan, self._engine.export_state()
        run = RunState(step, plan.fingerprints_at(step), self._figures(), json.loads(config_json(plan.config)))
        copy, random = self._staging.copier(state), random_states()
        self._writer.save(lambda: Snapshot(run, state.step, state.shapes, copy(), random))
        if not self._asynchronous:
            self._writer.wait()

    def wait_for_copy(self) -> None:
        """Call before every update: it would change what is being copied."""
        self._writer.wait_for_copy()

    def wait(self) -> None:
        """Return when this process has written everything; the first process: when it is published.

        Raises:
            CheckpointError: it could not be written.
        """
        self._writer.wait()

    def log(self, event: Callable[..., None]) -> None:
        """An event for each checkpoint that was published since the last call."""
        for report in self._writer.take_reports():
            event(
                "checkpoint",
                step=report.step,
                path=report.path.name,
                gb=round(report.bytes / 1e9, 6),
                stall_s=round(report.stall_s + (0 if self._asynchronous else report.seconds), 3),
                seconds=round(report.seconds, 3),
            )
