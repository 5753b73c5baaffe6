"""One function over many tasks in processes, where a process that dies takes only its own task with it.

``ProcessPoolExecutor`` breaks as a whole when one of its processes is killed, and does not say what that process was
doing. Here every worker has a pipe of its own, so a death names its task: it is tried once more when all others are
done, alone, because what was killed for memory may fit then. Dying again makes it a :class:`WorkerDied`.

Workers are spawned, not forked: no lock of a thread of ours is inherited. They end when their pipe does, so none
outlives a parent that was killed. Ctrl-C reaches the parent alone, which ends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from shards.errors import AnyGPTError

Task = TypeVar("Task")
Result = TypeVar("Result")

_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A task whose process ended before it answered, twice.

    Attributes:
        exit_code: of the process; ``-N`` if signal N killed it.
    """

    exit_code: int

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"the process ended with exit code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name if -self.exit_code in set(signal.Signals) else -self.exit_code
        return f"the process was killed by {name}"


@dataclass(slots=True)
class _Worker(Generic[Task]):
    process: BaseProcess
    connection: Connection
    number: int = -1


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    look: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    on_done: Callable[[int], object] = lambda number: None,
) -> Iterator[Result | WorkerDied]:
    """The results in the order of the tasks, each as soon as those before it are there.

    Args:
        look: is pickled, so it is a function of a module or a ``partial`` of one.
        workers: processes at a time, at least 1.
        on_done: is told the number of every task that has an answer, in the order of the answers.

    Raises:
        AnyGPTError: that ``look`` raised. Any other exception ends the worker, which counts as its death.
    """
    pool = _Pool[Task, Result](look, tasks, on_done)
    try:
        yield from pool.run(range(len(tasks)), workers=min(workers, len(tasks)))
    finally:
        pool.close()


class _Pool(Generic[Task, Result]):
    def __init__(self, look: Callable[[Task], Result], tasks: Sequence[Task], on_done: Callable[[int], object]) -> None:
        self._look, self._tasks, self._on_done = look, tasks, on_done
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker[Task]] = []
        self._answers: dict[int, Result | WorkerDied] = {}
        self._died: dict[int, int] = {}
        """Tasks whose process died once, and that have no answer yet."""

    def run(self, numbers: Sequence[int], *, workers: int) -> Iterator[Result | WorkerDied]:
        waiting = deque(numbers)
        given = 0
        while given < len(numbers):
            if given in self._answers:
                yield self._answers.pop(given)
                given += 1
                continue
            if not waiting and not self._busy():
                # Only those are left whose process died: each alone, in a fresh process.
                self.close()
                waiting.append(min(self._died))
                workers = 1
            self._feed(waiting, workers)
            self._collect()

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _busy(self) -> list[_Worker[Task]]:
        return [worker for worker in self._workers if worker.number >= 0]

    def _feed(self, waiting: deque[int], workers: int) -> None:
        while waiting and len(self._busy()) < workers:
            idle = next((worker for worker in self._workers if worker.number < 0), None)
            if idle is None:
                idle = self._start()
            idle.number = waiting.popleft()
            try:
                idle.connection.send(self._tasks[idle.number])
            except OSError:
                self._bury(idle)

    def _start(self) -> _Worker[Task]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._look), daemon=True)
        # Starting a process starts Python's tracker of resources too, if there is none, and that unblocks Ctrl-C.
        resource_tracker.ensure_running()
        with _interrupts_blocked():
            process.start()
        theirs.close()
        worker = _Worker[Task](process, ours)
        self._workers.append(worker)
        return worker

    def _collect(self) -> None:
        busy = self._busy()
        ready = wait([worker.connection for worker in busy])
        for worker in busy:
            if worker.connection not in ready:
                continue
            try:
                answer: Any = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if isinstance(answer, AnyGPTError):
                raise answer
            self._answer(worker.number, answer)
            worker.number = -1

    def _bury(self, worker: _Worker[Task]) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        exit_code = worker.process.exitcode or 0
        if worker.number in self._died:
            self._answer(worker.number, WorkerDied(exit_code))
        else:
            self._died[worker.number] = exit_code

    def _answer(self, number: int, answer: Result | WorkerDied) -> None:
        self._died.pop(number, None)
        self._answers[number] = answer
        self._on_done(number)


def _serve(connection: Connection, look: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = look(task)
        except AnyGPTError as error:
            answer = error
        connection.send(answer)


@contextmanager
def _interrupts_blocked() -> Generator[None]:
    """A process started meanwhile inherits the mask: Ctrl-C does not hit it before it can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
