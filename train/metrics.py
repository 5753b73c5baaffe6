"""What a run says about itself: ``metrics.jsonl``, TensorBoard, a log of events, and one line on a terminal.

``metrics.jsonl`` is the truth: one line an interval, losses averaged over the targets of the interval. A resumed run
first takes back the lines its checkpoint does not know, so that the file of a run that was killed equals the file of
one that was not, but for the seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import structlog
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shards.writer import commit_bytes
from train.wandb_log import WandbRun, start_wandb
from train.watch_config import WandbConfig

METRICS_NAME = "metrics.jsonl"
LOG_NAME = "train.log"
TENSORBOARD_NAME = "tensorboard"
TRAIN, VALIDATION = "train", "validation"
"""Kinds of lines; a line without one is of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Figures of the steps since the last line.

    Attributes:
        loss: mean over all targets; ``by_modality``, ``by_dataset`` and ``by_direction`` likewise, by that of the target, of
            the row, of the document. Steps that were skipped are in none of them; None if all were.
        targets: how many ids were predicted, by modality.
        shares: parts of the rows of the interval by dataset; ``shares_so_far`` of all rows of the run.
        lr: of the last step; ``grad_norm`` of the last that was not skipped.
        skipped: how many steps changed nothing (:mod:`train.guards`).
        tokens_per_s: ids read a second, padding included.
        mfu, mfu_doc: see :mod:`train.gauges`; None where the device's peak is not known.
        data_wait: part of the time that was spent waiting for rows.
        memory_gib: peaks of the first process, and of its GPU.
    """

    step: int
    loss: float | None
    by_modality: Mapping[str, float]
    by_dataset: Mapping[str, float]
    by_direction: Mapping[str, float]
    targets: Mapping[str, int]
    shares: Mapping[str, float]
    shares_so_far: Mapping[str, float]
    lr: float
    grad_norm: float | None
    skipped: int
    tokens_per_s: float
    mfu: float | None
    mfu_doc: float | None
    data_wait: float
    memory_gib: Mapping[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``."""
        return {
            "step": self.step,
            "loss": self.loss,
            "loss_by_modality": dict(self.by_modality),
            "loss_by_dataset": dict(self.by_dataset),
            "loss_by_direction": dict(self.by_direction),
            "targets": dict(self.targets),
            "shares": dict(self.shares),
            "shares_so_far": dict(self.shares_so_far),
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "skipped": self.skipped,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "mfu": self.mfu and round(self.mfu, 4),
            "mfu_doc": self.mfu_doc and round(self.mfu_doc, 4),
            "data_wait": round(self.data_wait, 5),
            "memory_gib": dict(self.memory_gib),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFigures:
    """Losses on rows that are never trained on, after a step; means over their targets."""

    step: int
    loss: float | None
    by_modality: Mapping[str, float]
    by_dataset: Mapping[str, float]
    targets: Mapping[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``, of its own kind."""
        return {
            "kind": VALIDATION,
            "step": self.step,
            "loss": self.loss,
            "loss_by_modality": dict(self.by_modality),
            "loss_by_dataset": dict(self.by_dataset),
            "targets": dict(self.targets),
            "seconds": round(self.seconds, 3),
        }


class RunLog:
    """A context manager that writes an interval everywhere it is wanted; silent on all ranks but the first."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        first_step: int,
        tensorboard: bool,
        silent: bool,
        wandb: WandbConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            config: of the run, for Weights & Biases.
        """
        self._silent = silent
        self._wandb: WandbRun | None = None
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        take_back_metrics(folder / METRICS_NAME, last_step=first_step - 1)
        self._metrics: IO[str] = (folder / METRICS_NAME).open("a", encoding="utf-8")
        self._events: IO[str] = (folder / LOG_NAME).open("a", encoding="utf-8")
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(self._events),
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
        )
        self._tensorboard: SummaryWriter | None = None
        if tensorboard:
            purge = first_step if first_step > 1 else None
            self._tensorboard = SummaryWriter(str(folder / TENSORBOARD_NAME), purge_step=purge)
        if wandb is not None:
            self._wandb = start_wandb(wandb, folder, config or {})
        self._bar = tqdm(
            total=steps, initial=first_step - 1, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self._steps = steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._silent:
            return
        self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(failed=error is not None)
        self._metrics.close()
        self._events.close()

    def event(self, name: str, **fields: Any) -> None:
        """One structured line in ``train.log``."""
        if not self._silent:
            self._log.msg(name, **fields)
            self._events.flush()

    def advance(self) -> None:
        """One step is done."""
        if not self._silent:
            self._bar.update()

    def write(self, figures: Interval | ValidationFigures) -> None:
        """Write figures to the file, to TensorBoard, to Weights & Biases and to whoever watches."""
        if self._silent:
            return
        plain = figures.to_json()
        self._metrics.write(json.dumps(plain) + "\n")
        self._metrics.flush()
        is_interval = isinstance(figures, Interval)
        self.event("interval" if is_interval else VALIDATION, **plain)
        scalars = _scalars(plain)
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, figures.step)
        if self._wandb is not None:
            self._wandb.log(scalars | {"step": figures.step})
        line = one_line(figures, self._steps) if is_interval else validation_line(figures)
        if self._bar.disable or not is_interval:
            self._bar.write(line, file=sys.stderr)
        else:
            self._bar.set_description_str(line)

    def sync(self) -> None:
        """Make the lines durable, before a checkpoint says that they are there."""
        if not self._silent:
            os.fsync(self._metrics.fileno())


def one_line(interval: Interval, steps: int) -> str:
    """An interval for people."""
    modalities = " ".join(f"{name} {value:.3f}" for name, value in interval.by_modality.items())
    loss, norm = (float("nan") if value is None else value for value in (interval.loss, interval.grad_norm))
    mfu = f" mfu {interval.mfu:.1%}" if interval.mfu else ""
    skipped = f" skipped {interval.skipped}" if interval.skipped else ""
    return (
        f"step {interval.step}/{steps} loss {loss:.4f} ({modalities}) norm {norm:.2f} lr {interval.lr:.2e} "
        f"{interval.tokens_per_s:,.0f} tok/s{mfu}{skipped}"
    )


def validation_line(figures: ValidationFigures) -> str:
    """Losses of validation for people."""
    datasets = " ".join(f"{name} {value:.3f}" for name, value in figures.by_dataset.items())
    return (
        f"step {figures.step} validation loss {float('nan') if figures.loss is None else figures.loss:.4f} ({datasets})"
    )


def take_back_metrics(path: Path, *, last_step: int) -> None:
    """Keep the lines up to ``last_step``; later ones, and a last line that was cut, go."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = b"".join(line for line in lines if _step_of(line) <= last_step)
    if kept != b"".join(lines):
        commit_bytes(path, kept)


def read_metrics(path: Path, *, kind: str = TRAIN) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` of one kind."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.get("kind", TRAIN) == kind]


def _scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by the names of their charts: ``loss``, ``loss_by_modality/image``, ``validation/loss``."""
    prefix = f"{figures['kind']}/" if "kind" in figures else ""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= {f"{prefix}{name}/{key}": part for key, part in value.items() if name != "targets"}
        elif isinstance(value, int | float) and name not in ("step", "seconds"):
            found[prefix + name] = value
    return found


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError):
        return float("inf")
