"""What is measured while a run goes on: losses by dataset and modality, and where the time went.

Gathered over an interval of steps and read at its end. The gathered figures travel in a checkpoint, so an interval that
a run was killed in is as whole as any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from train.loss import LossTable
from train.metrics import Interval
from train.objectives import LossGroups
from train.plan import Plan


class Gauges:
    """Figures since the last line of metrics.

    Args:
        groups: what losses are told apart by, besides the dataset.
        total: sums a tensor over the processes of the run.
        before: what :meth:`to_json` gave when the run was saved, or nothing.
    """

    def __init__(
        self,
        plan: Plan,
        groups: LossGroups,
        *,
        device: torch.device,
        first_process: bool,
        total: Callable[[torch.Tensor], torch.Tensor],
        before: Mapping[str, Any],
    ) -> None:
        self._modalities, self._datasets = groups.names, plan.mixture.names
        self._slots = plan.config.batch_rows * plan.sequence_length
        self._total = total
        self.losses = LossTable(
            torch.from_numpy(groups.index).to(device),
            num_modalities=len(self._modalities),
            num_datasets=len(self._datasets),
        )
        if before and first_process:  # figures are summed over processes: one of them brings those from before
            # The plan of later shares may have changed; datasets that were read already come first in both.
            sums = torch.tensor(before["losses"], dtype=torch.float64, device=device)
            known = min(sums.shape[1], len(self._datasets))
            self.losses.sums[:, :known] += sums[:, :known]
        now = time.perf_counter()
        self._steps = int(before.get("steps", 0))
        self._wait_s = float(before.get("wait_s", 0.0))
        self._interval_start = now - float(before.get("interval_s", 0.0))
        self._run_start = now - float(before.get("run_s", 0.0))

    def step_done(self, *, wait_s: float) -> None:
        """One step is over, of which ``wait_s`` seconds were spent waiting for rows."""
        self._steps += 1
        self._wait_s += wait_s

    def read(self, step: int, *, lr: float, grad_norm: float) -> Interval:
        """The figures of the interval that ends with ``step``; a new one begins. All processes must call."""
        sums, counts = self._total(self.losses.sums.clone()).cpu()
        self.losses.sums.zero_()
        now = time.perf_counter()
        elapsed = now - self._interval_start
        interval = Interval(
            step=step,
            loss=float(sums.sum() / counts.sum()),
            by_modality=_means(sums.sum(0), counts.sum(0), self._modalities),
            by_dataset=_means(sums.sum(1), counts.sum(1), self._datasets),
            targets={n: int(count) for n, count in zip(self._modalities, counts.sum(0), strict=True) if count},
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_s=self._steps * self._slots / elapsed,
            data_wait=self._wait_s / elapsed,
            seconds=now - self._run_start,
        )
        self._steps, self._wait_s, self._interval_start = 0, 0.0, now
        return interval

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to finish the interval. All processes must call."""
        now = time.perf_counter()
        return {
            "losses": self._total(self.losses.sums.clone()).tolist(),
            "steps": self._steps,
            "wait_s": self._wait_s,
            "interval_s": now - self._interval_start,
            "run_s": now - self._run_start,
        }


def _means(sums: torch.Tensor, counts: torch.Tensor, names: list[str] | tuple[str, ...]) -> dict[str, float]:
    return {name: float(s / c) for name, s, c in zip(names, sums, counts, strict=True) if c}
