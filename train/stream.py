"""The rows of a run, one global batch after another; its state is one integer, the step.

A rank takes its part of the global batch's positions, so what a step learns from does not depend on how many ranks
there are. One thread gathers the next batch into a spare buffer while the current one is trained on: gathering is
memory copies that release the interpreter lock, and worker processes would cost more than they save. Where rows lie is
planned for some thousands of them at a time; where datasets lie in an object store, the plan is made some such blocks
ahead, so that their files are here before their rows are read.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from shards.mixed_rows import MixedRows, Rows
from shards.reader import PackedDataset
from shards.schedule import AnyMixture
from train.collate import Attention, HostBatch, allocate, fill
from train.masking import Masking

# Planned at once. More of them cost less each, and 16,384 are planned in about a millisecond.
_PLANNED_ROWS = 16_384
_BLOCKS_AHEAD = 2


class RowStream:
    """A context manager; :meth:`next` gives the batches of steps ``first_step``, ``first_step + 1``, ...

    Steps count from 1: step k reads positions ``[(k - 1) * batch_rows, k * batch_rows)``.
    """

    def __init__(
        self,
        mixture: AnyMixture,
        datasets: tuple[PackedDataset, ...],
        *,
        batch_rows: int,
        attention: Attention,
        masking: Masking | None = None,
        first_step: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_rows % world_size:
            raise ValueError(f"expected batch_rows to divide over the ranks, found {batch_rows} over {world_size}")
        self.wait_s = 0.0
        """Seconds that :meth:`next` has waited for data so far."""
        self._mixture, self._masking = mixture, masking
        self._batch_rows, self._rows = batch_rows, batch_rows // world_size
        self._rank, self._world_size = rank, world_size
        self._mixed = MixedRows(mixture, datasets)
        self._block = max(1, _PLANNED_ROWS // self._rows)
        self._ahead_blocks = _BLOCKS_AHEAD if self._mixed.is_remote else 0
        # By the first step of the block, from 0 on.
        self._plans: dict[int, Rows] = {}
        length, dtype = datasets[0].sequence_length, datasets[0].vocabulary.dtype
        hides = masking is not None
        self._buffers = [allocate(self._rows, length, dtype, attention, hides=hides) for _ in range(2)]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._step = first_step
        self._ahead: Future[HostBatch] = self._thread.submit(self._fill, first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._mixed.read_ahead(())

    def next(self) -> HostBatch:
        """This rank's rows of the next step; the batch given before it is overwritten from now on."""
        start = time.perf_counter()
        batch = self._ahead.result()
        self.wait_s += time.perf_counter() - start
        self._step += 1
        self._ahead = self._thread.submit(self._fill, self._step)
        return batch

    def _fill(self, step: int) -> HostBatch:
        rows, start = self._planned(step)
        return fill(self._buffers[step % 2], self._mixed, rows, start=start, masking=self._masking)

    def _planned(self, step: int) -> tuple[Rows, int]:
        """The rows of the block of steps that this one is in, and where its own begin."""
        first = (step - 1) // self._block * self._block
        if next(iter(self._plans), None) != first:
            blocks = range(first, first + (1 + self._ahead_blocks) * self._block, self._block)
            self._plans = {block: self._plans.get(block) or self._plan_block(block) for block in blocks}
            self._mixed.read_ahead(list(self._plans.values()))
        return self._plans[first], (step - 1 - first) * self._rows

    def _plan_block(self, first: int) -> Rows:
        steps = np.arange(first, first + self._block)
        positions = self._mixture.batches(steps, self._batch_rows, rank=self._rank, world_size=self._world_size)
        return self._mixed.plan(positions)
