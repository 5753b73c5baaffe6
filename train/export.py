"""Any checkpoint of a run as a model others load, at any time, also while the run goes on.

From the disk alone: no engine, no device, no network, one parameter in memory at a time. The checkpoint says which
vocabulary and model its weights are of; a config that has since become another is refused.
"""

from __future__ import annotations

from pathlib import Path

from shards.errors import CheckpointError, FingerprintMismatch
from train.checkpoint import (
    checkpoint_name,
    complete_checkpoints,
    newest_checkpoint,
    publish_folder,
    read_master,
    read_run_state,
    step_of,
)
from train.objectives import open_objective
from train.plan import Plan

EXPORTS_FOLDER = "exports"
_DECIDING = ("vocabulary", "model")
"""Fingerprints of what a weight's name and shape mean; data and batch may have changed since."""


def export_checkpoint(plan: Plan, *, step: int | None = None, folder: Path | None = None) -> Path:
    """Write a checkpoint as the run's objective exports it; whole under its name, or not at all.

    Args:
        step: of the checkpoint; None takes the newest.
        folder: to write, replacing what is there; None takes ``OUTPUT/exports/step-N``.

    Returns:
        The folder.

    Raises:
        CheckpointError: no such checkpoint; names those there are.
        FingerprintMismatch: it is of another model or vocabulary than the config's.
    """
    checkpoint = _find(plan, step)
    found, expected = read_run_state(checkpoint).fingerprints, plan.fingerprints
    if other := [name for name in _DECIDING if found.get(name) != expected.get(name)]:
        raise FingerprintMismatch(
            f"{checkpoint}: expected weights of the config's {' and '.join(other)}, found those of another; export with "
            f"the config the run was started with ({plan.config.output / 'config.json'})"
        )
    final = folder or plan.config.output / EXPORTS_FOLDER / checkpoint.name
    publish_folder(final, lambda temporary: open_objective(plan).export(read_master(checkpoint), temporary))
    return final


def _find(plan: Plan, step: int | None) -> Path:
    if step is None:
        found = newest_checkpoint(plan.checkpoints)
    else:
        path = plan.checkpoints / checkpoint_name(step)
        found = path if path in complete_checkpoints(plan.checkpoints) else None
    if found is None:
        there = ", ".join(f"{step_of(path):,}" for path in complete_checkpoints(plan.checkpoints)) or "none"
        raise CheckpointError(
            f"{plan.checkpoints}: expected a whole checkpoint{f' of step {step:,}' if step is not None else ''}, found "
            f"those of steps {there}; give one of them, or train further"
        )
    return found
