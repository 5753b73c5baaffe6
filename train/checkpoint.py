"""The state of a run on disk: float32 tensors by parameter name, one step number, and what they belong to.

``checkpoints/step-00000200/`` holds ``master``, ``exp_avg`` and ``exp_avg_sq`` as safetensors, and ``state.json``. It is
written under a temporary name, every file synced, then renamed: a folder under its final name is whole, and one that
is not (a disk that lied, a copy that was cut) is noticed by its sizes and passed over for the one before it.

The position in the data is the step; nothing else has a state. Since tensors go by name, a checkpoint does not know how
many processes or which ZeRO stage wrote it. No torch in this file: whether a run is finished is asked before anything
heavy is imported.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from shards.errors import CheckpointError, FingerprintMismatch
from shards.writer import TEMPORARY_SUFFIX, commit_bytes, commit_file

FORMAT_VERSION = 1
STATE_NAME = "state.json"
LATEST_NAME = "latest"

Tensors = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Float32 arrays by parameter name: master weights and Adam's two moments, after ``step`` updates."""

    step: int
    master: Tensors
    exp_avg: Tensors
    exp_avg_sq: Tensors


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint says besides its tensors.

    Attributes:
        step: the last one done; the next one reads the rows after it.
        fingerprints: of everything a run must share with it to continue it.
        log: figures that were gathered and not yet written.
        config: resolved, for whoever looks into the folder.
    """

    step: int
    fingerprints: Mapping[str, str]
    log: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


def save_checkpoint(folder: Path, optimizer: OptimizerState, run: RunState, *, keep: int) -> Path:
    """Write and publish one checkpoint, then remove all but the newest ``keep``.

    Args:
        folder: of all checkpoints of the run.
    """
    final = folder / _name(run.step)
    publish_folder(final, lambda temporary: _write(temporary, optimizer, run))
    commit_bytes(folder / LATEST_NAME, f"{final.name}\n".encode())
    for old in _complete(folder)[keep:]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; torn ones are passed over."""
    return next(iter(_complete(folder)), None)


def read_run_state(checkpoint: Path) -> RunState:
    """What :func:`newest_checkpoint`'s folder says besides its tensors."""
    data = _read_state(checkpoint)
    if data is None:
        raise CheckpointError(f"{checkpoint}: expected a whole checkpoint, found a torn one; remove it")
    return RunState(**{name: data[name] for name in RunState.__slots__})


def read_optimizer_state(checkpoint: Path) -> OptimizerState:
    """The tensors of a checkpoint."""
    data = _read_state(checkpoint)
    if data is None:
        raise CheckpointError(f"{checkpoint}: expected a whole checkpoint, found a torn one; remove it")
    tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in ("master", "exp_avg", "exp_avg_sq")}
    return OptimizerState(data["optimizer_step"], **tensors)


def check_same_run(checkpoint: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse to continue a run with another vocabulary, mixture, dataset, model or batch.

    Raises:
        FingerprintMismatch: naming everything that differs.
    """
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if different:
        raise FingerprintMismatch(
            f"{checkpoint}: this run was started with another {', '.join(different)}; "
            "give the run another output, or remove this folder to begin anew"
        )


def publish_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, make it durable, and rename it to ``final``, replacing what is there."""
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in sorted(temporary.iterdir()):
        _sync(path)
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    commit_file(temporary, final)


def _write(folder: Path, optimizer: OptimizerState, run: RunState) -> None:
    sizes = {}
    for name in ("master", "exp_avg", "exp_avg_sq"):
        path = folder / f"{name}.safetensors"
        save_file(dict(getattr(optimizer, name)), path)
        sizes[path.name] = path.stat().st_size
    state = {
        "format_version": FORMAT_VERSION,
        "optimizer_step": optimizer.step,
        "files": sizes,
        **{name: getattr(run, name) for name in RunState.__slots__},
    }
    (folder / STATE_NAME).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _complete(folder: Path) -> list[Path]:
    """Whole checkpoints, newest first."""
    candidates = [path for path in folder.glob("step-*") if path.is_dir() and not path.name.endswith(TEMPORARY_SUFFIX)]
    return sorted((path for path in candidates if _read_state(path) is not None), reverse=True)


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    """``state.json``, or None if it or a file it names is missing or cut."""
    try:
        data = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        whole = all((checkpoint / name).stat().st_size == size for name, size in data["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    if data["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{checkpoint}: expected checkpoint format {FORMAT_VERSION}, found {data['format_version']}; "
            "continue it with the release that wrote it"
        )
    return data if whole else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
