"""A look inside some steps with torch's profiler.

``OUTPUT/profile/steps-A-B.json.gz`` is for chrome://tracing or Perfetto, ``steps-A-B.txt`` has the operations that took
longest. Of the first process only; the other steps are not touched.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from train.engine import Processes
from train.watch_config import ProfileConfig

FOLDER = "profile"
_LONGEST = 40


class Profile:
    """A context manager; leaving it writes what was begun."""

    def __init__(self, wanted: ProfileConfig | None, output: Path, processes: Processes) -> None:
        self._wanted = wanted if processes.rank == 0 else None
        self._folder = output / FOLDER
        self._is_cuda = processes.device.type == "cuda"
        self._running: profile | None = None
        self._last = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def before(self, step: int) -> None:
        """A step is about to begin: begin to look, or stop."""
        if self._wanted is None:
            return
        if step == self._wanted.start + self._wanted.steps:
            self._write()
        if step == self._wanted.start:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_cuda else [])]
            self._running = profile(activities=activities, record_shapes=True, acc_events=True)
            self._running.start()
        self._last = step

    def _write(self) -> None:
        if self._running is None or self._wanted is None:
            return
        running, self._running = self._running, None
        if self._is_cuda:
            torch.cuda.synchronize()
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        last = min(self._last, self._wanted.start + self._wanted.steps - 1)
        path = self._folder / f"steps-{self._wanted.start}-{last}.json.gz"
        running.export_chrome_trace(str(path))
        order = "self_device_time_total" if self._is_cuda else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=_LONGEST)
        path.with_name(path.name.removesuffix(".json.gz") + ".txt").write_text(table + "\n", encoding="utf-8")
