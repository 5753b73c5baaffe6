"""One model, many people: answers are written one after another, first come first served, in one thread.

A model answers no two requests faster together on the machines this page is for, and what torch keeps per thread
(inference mode, the number of its threads) stays as it was set. Whoever waits is told how many are before them. Whoever
leaves is not written for any longer than to the next event of the answer, or to the next step of the model where
:meth:`ModelQueue.check` is called between steps: a minute of speech is one event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shards.errors import AnyGPTError

EventT = TypeVar("EventT")


class QueueFull(AnyGPTError):
    """More people wait for the model than the config allows."""


class GivenUp(AnyGPTError):
    """Whoever asked has left; raised in the model's thread to end their answer."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many are before this one; 0: the model writes this answer now."""

    before: int


@dataclass(frozen=True, slots=True)
class _Ended:
    """Of an answer; what the thread failed with is raised by its future."""


@dataclass(slots=True, eq=False)
class _Ticket(Generic[EventT]):
    events: asyncio.Queue[EventT | Waiting | _Ended] = field(default_factory=asyncio.Queue)
    given_up: threading.Event = field(default_factory=threading.Event)
    told: int | None = None


class ModelQueue:
    """Runs generators of events in the model's thread; to be used from one event loop."""

    def __init__(self, *, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._tickets: list[_Ticket] = []
        self._running: _Ticket | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def stream(self, write: Callable[[], Generator[EventT, None, None]]) -> AsyncGenerator[EventT | Waiting]:
        """The events of one answer; before them, how long the queue is whenever that changes.

        What ``write`` raises is raised here. Closing this closes the generator, too.

        Raises:
            QueueFull: too many wait already.
        """
        if len(self._wanted()) > self.max_waiting:
            raise QueueFull(f"the model is busy and {self.max_waiting} people wait already; try again in a minute")
        loop = asyncio.get_running_loop()
        ticket: _Ticket[EventT] = _Ticket()
        self._tickets.append(ticket)
        self._tell()
        writing = loop.run_in_executor(self._thread, self._write, write, ticket, loop)
        writing.add_done_callback(lambda future: self._leave(ticket, future))
        try:
            while not isinstance(event := await ticket.events.get(), _Ended):
                yield event
            await writing
        finally:
            ticket.given_up.set()
            self._tell()

    def check(self) -> None:
        """To be called in the model's thread between two steps.

        Raises:
            GivenUp: nobody waits for what is being written.
        """
        if self._running is not None and self._running.given_up.is_set():
            raise GivenUp("whoever asked has left")

    def close(self) -> None:
        """End every answer, and the thread with the last of them."""
        for ticket in self._tickets:
            ticket.given_up.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _leave(self, ticket: _Ticket, future: asyncio.Future[None]) -> None:
        self._tickets.remove(ticket)
        if not future.cancelled():
            future.exception()  # seen, should nobody be left to raise it for
        ticket.events.put_nowait(_Ended())
        self._tell()

    def _wanted(self) -> list[_Ticket]:
        return [ticket for ticket in self._tickets if not ticket.given_up.is_set()]

    def _tell(self) -> None:
        for before, ticket in enumerate(self._wanted()):
            if ticket.told != before:
                ticket.told = before
                ticket.events.put_nowait(Waiting(before))

    def _write(
        self,
        write: Callable[[], Generator[EventT, None, None]],
        ticket: _Ticket[EventT],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        if ticket.given_up.is_set():
            return
        self._running = ticket
        try:
            with closing(write()) as events:
                for event in events:
                    loop.call_soon_threadsafe(ticket.events.put_nowait, event)
                    self.check()
        except GivenUp:
            return
        finally:
            self._running = None
