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

METRICS_NAME = "metrics.jsonl"
LOG_NAME = "train.log"
TENSORBOARD_NAME = "tensorboard"


@dataclass(frozen=True, slots=True)
class Interval:
    """Figures of the steps since the last line.

    Attributes:
        loss: mean over all targets; ``by_modality`` and ``by_dataset`` likewise, by that of the target and of the row.
        targets: how many ids were predicted, by modality.
        grad_norm, lr: of the last step.
        tokens_per_s: ids read a second, padding included.
        data_wait: part of the time that was spent waiting for rows.
    """

    step: int
    loss: float
    by_modality: Mapping[str, float]
    by_dataset: Mapping[str, float]
    targets: Mapping[str, int]
    lr: float
    grad_norm: float
    tokens_per_s: float
    data_wait: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``."""
        return {
            "step": self.step,
            "loss": self.loss,
            "loss_by_modality": dict(self.by_modality),
            "loss_by_dataset": dict(self.by_dataset),
            "targets": dict(self.targets),
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "data_wait": round(self.data_wait, 5),
            "seconds": round(self.seconds, 3),
        }


class RunLog:
    """A context manager that writes an interval everywhere it is wanted; silent on all ranks but the first."""

    def __init__(self, folder: Path, *, steps: int, first_step: int, tensorboard: bool, silent: bool) -> None:
        self._silent = silent
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

    def write(self, interval: Interval) -> None:
        """Write one interval to the file, to TensorBoard and to whoever watches."""
        if self._silent:
            return
        self._metrics.write(json.dumps(interval.to_json()) + "\n")
        self._metrics.flush()
        self.event("interval", **interval.to_json())
        self._write_tensorboard(interval)
        line = one_line(interval, self._steps)
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        else:
            self._bar.set_description_str(line)

    def sync(self) -> None:
        """Make the lines durable, before a checkpoint says that they are there."""
        if not self._silent:
            os.fsync(self._metrics.fileno())

    def _write_tensorboard(self, interval: Interval) -> None:
        if self._tensorboard is None:
            return
        scalars = {
            "loss": interval.loss,
            "lr": interval.lr,
            "grad_norm": interval.grad_norm,
            "tokens_per_s": interval.tokens_per_s,
            "data_wait": interval.data_wait,
            **{f"loss_by_modality/{name}": value for name, value in interval.by_modality.items()},
            **{f"loss_by_dataset/{name}": value for name, value in interval.by_dataset.items()},
        }
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, interval.step)


def one_line(interval: Interval, steps: int) -> str:
    """An interval for people."""
    modalities = " ".join(f"{name} {value:.3f}" for name, value in interval.by_modality.items())
    return (
        f"step {interval.step}/{steps} loss {interval.loss:.4f} ({modalities}) "
        f"norm {interval.grad_norm:.2f} lr {interval.lr:.2e} {interval.tokens_per_s:,.0f} tok/s"
    )


def take_back_metrics(path: Path, *, last_step: int) -> None:
    """Keep the lines up to ``last_step``; later ones, and a last line that was cut, go."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = b"".join(line for line in lines if _step_of(line) <= last_step)
    if kept != b"".join(lines):
        commit_bytes(path, kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError):
        return float("inf")
