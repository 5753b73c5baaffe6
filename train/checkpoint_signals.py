"""A run that is asked to go: finish the step, save, leave with exit code 0.

SLURM sends SIGTERM before it takes a machine back (``--signal=TERM@600`` gives ten minutes), a person presses Ctrl-C. Not
every process need be told: what one has heard travels with the numbers that are summed in each step, so that all stop after
the same one. A second signal acts as if nobody listened.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context manager that listens; outside of it, and away from the main thread, nothing is heard.

    Args:
        listen: False leaves all signals as they are.
    """

    def __init__(self, *, listen: bool = True) -> None:
        self._listen = listen
        self._before: dict[signal.Signals, Any] = {}
        self._heard = 0
        self._everywhere: torch.Tensor | None = None

    def __enter__(self) -> Self:
        if self._listen and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def heard(self) -> int:
        """1 if this process was asked to stop; the trainer sums it over the processes."""
        return int(self._heard != 0)

    @property
    def name(self) -> str:
        """Of the signal this process has heard."""
        return signal.Signals(self._heard).name if self._heard else "another process's signal"

    def tell(self, everywhere: torch.Tensor) -> None:
        """Take note of the sum of :attr:`heard`; not looked at before :meth:`is_agreed`, so a GPU is not waited for."""
        self._everywhere = everywhere

    def is_agreed(self) -> bool:
        """Whether any process was asked before the last step; the same on all of them."""
        return self._everywhere is not None and bool(self._everywhere > 0)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._heard:
            self._restore()
            signal.raise_signal(number)
            return
        self._heard = number
        # A handler may interrupt a print in the middle; one unbuffered write is safe.
        sys.stderr.write(f"\n{signal.Signals(number).name}: finishing the step and saving; again to stop at once\n")

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
