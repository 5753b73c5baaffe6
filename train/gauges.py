"""What is measured while a run goes on: losses by dataset, direction and modality, speed, and where time and memory went.

Gathered over an interval of steps and read at its end. The gathered figures travel in a checkpoint, so an interval that
a run was killed in is as whole as any other.

Two utilisations are told (:mod:`train.flops`), both of the device's dense bfloat16 peak: ``mfu`` in the convention of PaLM,
where every id meets every id of its row; ``mfu_doc`` with the attention that the batches really had, each document's own
(causal) where documents are apart. Padding counts in both, for it is computed.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shards.errors import ConfigError
from train.collate import HostBatch
from train.devices import find_device
from train.directions import UNKNOWN, Directions
from train.engine import Processes
from train.flops import flops_per_token, matmul_parameters
from train.guards import Judgement
from train.loss_table import Axes, Cells, LossTable, stored_cells
from train.metrics import Interval
from train.objectives import LossGroups
from train.plan import Plan
from train.shape import Shape

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _LookedUp:
    """What the host knows of a batch: (targets,) the cell of each; the sum of squared lengths of what attends to itself."""

    cells: Cells
    squares: float


class Gauges:
    """Figures since the last line of metrics.

    Args:
        groups: what losses are told apart by, besides dataset and direction.
        total: sums a tensor over the processes of the run.
        before: what :meth:`to_json` gave when the run was saved, or nothing.
    """

    def __init__(
        self,
        plan: Plan,
        groups: LossGroups,
        *,
        processes: Processes,
        total: Callable[[torch.Tensor], torch.Tensor],
        before: Mapping[str, Any],
    ) -> None:
        self._plan, self._processes, self._total = plan, processes, total
        self._modality_of_id = groups.index
        self._directions = Directions(plan.mixture, plan.datasets) if plan.config.log.directions else None
        directions = self._directions.names if self._directions else (UNKNOWN,)
        axes = Axes(plan.mixture.names, directions, tuple(groups.names))
        self._table = LossTable(axes, processes.device)
        is_first = processes.rank == 0
        if is_first:  # figures are summed over processes: one of them brings those from before
            self._table.add_stored(stored_cells(before, axes))
        self._squares = float(before.get("squares", 0.0)) if is_first else 0.0
        self._peak = device_peak(processes.device)
        now = time.perf_counter()
        self._steps = int(before.get("steps", 0))
        self._skipped = int(before.get("skipped", 0))
        self._norm: float | None = before.get("grad_norm")
        self._wait_s = float(before.get("wait_s", 0.0))
        self._interval_start = now - float(before.get("interval_s", 0.0))
        self._run_start = now - float(before.get("run_s", 0.0))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gauges")
        self._looked_up: Future[_LookedUp] | None = None
        self.losses: list[torch.Tensor] = []
        """Of the targets of this step so far, in the order of the rows."""

    def begin(self, batch: HostBatch) -> None:
        """A step begins; the batch is looked up while the device computes."""
        self.losses = []
        self._looked_up = self._thread.submit(self._look_up, batch)

    def add(self, losses: torch.Tensor) -> None:
        """Losses of the next targets, (N,) on the device."""
        self.losses.append(losses.detach())

    def end(self, judged: Judgement) -> None:
        """The step is over; it counts unless its update was left out."""
        assert self._looked_up is not None, "a step ends after it begins"
        found = self._looked_up.result()
        if judged.refused:
            self._skipped += 1
        else:
            self._table.add(torch.cat(self.losses), found.cells)
            self._norm = judged.grad_norm
        self._squares += found.squares
        self._steps += 1

    def waited(self, seconds: float) -> None:
        """Seconds that the step waited for rows."""
        self._wait_s += seconds

    def pause(self, seconds: float) -> None:
        """Seconds that went to something else than steps."""
        self._interval_start += seconds

    def read(self, step: int, *, lr: float) -> Interval:
        """The figures of the interval that ends with ``step``; a new one begins. All processes must call."""
        extra = torch.tensor([self._squares], dtype=torch.float64, device=self._processes.device)
        values = self._total(torch.cat([self._table.packed(), extra]))
        found, squares = self._table.unpack(values[:-1]), float(values[-1])
        now = time.perf_counter()
        elapsed = now - self._interval_start
        tokens = self._steps * self._plan.config.batch_rows * self._plan.sequence_length
        mfu, mfu_doc = self._utilisation(tokens, squares, elapsed)
        by_direction = found.means(1)
        interval = Interval(
            step=step,
            loss=found.mean,
            by_modality=found.means(2),
            by_dataset=found.means(0),
            by_direction={} if set(by_direction) <= {UNKNOWN} else by_direction,
            targets=found.targets,
            shares=self._shares(step - self._steps, step),
            shares_so_far=self._shares(0, step),
            lr=lr,
            grad_norm=self._norm,
            skipped=self._skipped,
            tokens_per_s=tokens / elapsed,
            mfu=mfu,
            mfu_doc=mfu_doc,
            data_wait=self._wait_s / elapsed,
            memory_gib=memory_gib(self._processes.device),
            seconds=now - self._run_start,
        )
        self._table.clear()
        self._steps = self._skipped = 0
        self._squares = self._wait_s = 0.0
        self._interval_start = now
        return interval

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to finish the interval. All processes must call."""
        now = time.perf_counter()
        extra = torch.tensor([self._squares], dtype=torch.float64, device=self._processes.device)
        values = self._total(torch.cat([self._table.packed(), extra]))
        return {
            "losses": self._table.unpack(values[:-1]).to_json(),
            "squares": float(values[-1]),
            "steps": self._steps,
            "skipped": self._skipped,
            "grad_norm": self._norm,
            "wait_s": self._wait_s,
            "interval_s": now - self._interval_start,
            "run_s": now - self._run_start,
        }

    def _look_up(self, batch: HostBatch) -> _LookedUp:
        length = batch.token_ids.shape[1]
        # The id at t is predicted at t - 1, so the first of a row is never a target.
        rows, places = np.nonzero(batch.is_target[:, 1:])
        places += 1
        directions = np.zeros(len(rows), np.uint8)
        if self._directions is not None and len(self._directions.names) > 1:
            directions = self._directions.of_rows(batch.positions, length)[rows, places]
        modalities = self._modality_of_id[batch.token_ids[rows, places]]
        cells = self._table.cells_of(batch.datasets[rows], directions, modalities)
        return _LookedUp(cells, sum_of_squares(batch.position_ids, len(batch.token_ids), length))

    def _utilisation(self, tokens: int, squares: float, elapsed: float) -> tuple[float | None, float | None]:
        shape = self._plan.shape
        if self._peak is None or not isinstance(shape, Shape):
            return None, None
        seconds = elapsed * self._processes.world_size * self._peak
        dense = tokens * flops_per_token(shape, self._plan.sequence_length)
        return dense / seconds, packed_flops(shape, tokens, squares) / seconds

    def _shares(self, first: int, last: int) -> dict[str, float]:
        """Parts of the rows of steps ``first + 1`` to ``last``: exact, for positions decide them."""
        size, mixture = self._plan.config.batch_rows, self._plan.mixture
        before, after = mixture.rows_drawn(first * size), mixture.rows_drawn(last * size)
        total = (last - first) * size
        return {name: round((after[name] - before[name]) / total, 6) for name in mixture.names if total}


def sum_of_squares(position_ids: npt.NDArray[np.int32] | None, num_rows: int, length: int) -> float:
    """Of the lengths of what attends to itself: documents, the last of a row with its padding; or whole rows.

    Args:
        position_ids: (rows, length), 0 where a document begins; None where documents of a row see each other.
    """
    if position_ids is None:
        return float(num_rows) * length * length
    starts = np.flatnonzero(position_ids == 0)
    return float(np.square(np.diff(starts, append=position_ids.size), dtype=np.float64).sum())


def packed_flops(shape: Shape, tokens: int, squares: float) -> float:
    """Of packed rows, forward and backward, each document attending to itself alone and to what is before.

    Args:
        squares: sum of the squared lengths of the documents; one document of S ids costs what
            ``flops_per_token(shape, S, causal=True)`` says.
    """
    return 6.0 * matmul_parameters(shape) * tokens + 6.0 * shape.num_layers * shape.hidden_size * squares


def device_peak(device: torch.device) -> float | None:
    """FLOPs a second of a device in dense bfloat16; None of a CPU, or of one that ``configs/rates.toml`` does not have."""
    if device.type != "cuda":
        return None
    try:
        return find_device(torch.cuda.get_device_name(device))[1].peak or None
    except ConfigError:
        return None


def memory_gib(device: torch.device) -> dict[str, float]:
    """Peaks of this process: of the host since it began, of the GPU since the last call."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB}
    if device.type == "cuda":
        found["gpu_allocated"] = torch.cuda.max_memory_allocated(device) / _GIB
        found["gpu_reserved"] = torch.cuda.max_memory_reserved(device) / _GIB
        torch.cuda.reset_peak_memory_stats(device)
    return {name: round(value, 3) for name, value in found.items()}
