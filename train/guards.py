"""What is not learnt from: a step whose loss or gradient is not finite, or far beyond what is usual, changes nothing.

Judged before the update, from the loss of the whole global batch and the norm of its gradient: one number each, summed
over the processes, so all of them judge alike. A spike is told by the running median of the updates before, which a few
spikes do not move (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, skip batches after the fact, by hand). What the
guard knows travels in the checkpoints, so a resumed run judges as an uninterrupted one.

The gradient norm of a step counts as it is, before clipping. Losses and norms of steps that were left out are no part of
the medians.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import AnyGPTError
from train.watch_config import GuardsConfig


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one step.

    Attributes:
        loss: mean over the targets of the global batch.
        refused: why the update was left out; empty where it was made.
    """

    loss: float
    grad_norm: float
    refused: str = ""


class Guard:
    """Judges one step after the other.

    Args:
        before: what :meth:`to_json` gave when the run was saved, or nothing.
    """

    def __init__(self, config: GuardsConfig, before: Mapping[str, Any]) -> None:
        self._config = config
        self._losses = deque[float](before.get("losses", ()), maxlen=config.window)
        self._norms = deque[float](before.get("norms", ()), maxlen=config.window)
        self.skipped_in_a_row = int(before.get("in_a_row", 0))

    def judge(self, loss: float, grad_norm: float) -> Judgement:
        """Whether to learn from a step; takes note of it."""
        refused = self._fault("loss", loss, self._losses) or self._fault("gradient norm", grad_norm, self._norms)
        if refused:
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self._losses.append(loss)
            self._norms.append(grad_norm)
        return Judgement(loss, grad_norm, refused)

    def check(self, output: Path, dump: Path | None) -> None:
        """Stop a run that leaves out one step after the other.

        Raises:
            AnyGPTError: ``max_skips`` in a row.
        """
        if self.skipped_in_a_row < self._config.max_skips:
            return
        seen = f"look at it with anygpt-inspect {dump}; " if dump else ""
        raise AnyGPTError(
            f"{output}: expected at most {self._config.max_skips - 1} steps in a row that are left out, found "
            f"{self.skipped_in_a_row}; {seen}"
            "the same command continues from the last checkpoint: with --set optimizer.lr=LOWER if the run diverges, after "
            "anygpt-remove if samples are at fault, with --set guards.spike_factor=HIGHER if all is well"
        )

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to judge likewise."""
        return {"losses": list(self._losses), "norms": list(self._norms), "in_a_row": self.skipped_in_a_row}

    def _fault(self, what: str, value: float, usual: deque[float]) -> str:
        if not math.isfinite(value):
            return f"{what} {value}"
        factor = self._config.spike_factor
        if not factor or len(usual) < min(self._config.warm_up, self._config.window):
            return ""
        median = statistics.median(usual)
        return f"{what} {value:.4g}, {value / median:.1f} x the median {median:.4g}" if value > factor * median else ""
