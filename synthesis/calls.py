"""One call of a language model: what is asked, what comes back, and who keeps the answers.

A :class:`CallKeeper` stands between a job and a :class:`Writer` (an endpoint, or our rules). What it has an answer for in
its store is never asked again; what it asks goes through the limits of rate and cost; an answer is on disk before anybody
sees it. Every job has one keeper, wherever its workers run, so limits hold for all of them together.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from shards.errors import AnyGPTError

Kind = Literal["topics", "scenarios", "dialogues"]
T = TypeVar("T")


class CallFailed(AnyGPTError):
    """A call got no answer one can use; its items are rejected under ``reason``, and the job goes on."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class BudgetSpent(AnyGPTError):
    """The next call might cost more than what is left; the run stops, and what was answered is kept."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """Everything an answer depends on; equal requests have equal keys.

    Attributes:
        seed: sent along, for endpoints that know it, and what tells two calls of one prompt apart.
    """

    kind: Kind
    messages: tuple[Message, ...]
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """32 hex digits of the canonical JSON of the request."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    @property
    def estimated_tokens(self) -> int:
        """Of the prompt: a token is about four characters of English, and a message costs a few of its own."""
        return sum(len(message.content) // 4 + 5 for message in self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        input_tokens, output_tokens: as the endpoint counted them, or our estimate where it did not.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""


class Writer(Protocol):
    """Who answers."""

    async def write(self, request: Request) -> Answer:
        """One answer, after however many tries.

        Raises:
            CallFailed: there is none.
            BudgetSpent: asking might cost too much.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Store(Protocol):
    """Where answers are kept; see :class:`synthesis.calls_store.AnswerStore`."""

    def get(self, key: str) -> Answer | None:
        """The answer of a request, if it has one."""
        ...

    async def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        ...

    def close(self) -> None:
        """Let others write."""
        ...


@dataclass(slots=True)
class CallCounts:
    """What a keeper did since it was opened."""

    asked: int = 0
    answered: int = 0
    from_store: int = 0
    failed: int = 0


@dataclass(slots=True)
class CallKeeper:
    """Answers from the store, or asks once and keeps the answer.

    Attributes:
        concurrency: calls under way at once, of all who ask.
    """

    writer: Writer
    store: Store
    concurrency: int = 16
    counts: CallCounts = field(default_factory=CallCounts)
    _under_way: dict[str, asyncio.Task[Answer]] = field(default_factory=dict[str, "asyncio.Task[Answer]"])
    _slots: asyncio.Semaphore | None = None

    async def ask(self, request: Request) -> Answer:
        """The answer to a request; two that ask the same at once share one call.

        Raises:
            CallFailed, BudgetSpent: of the writer.
        """
        key = request.key
        kept = self.store.get(key)
        if kept is not None:
            self.counts.from_store += 1
            return kept
        if key not in self._under_way:
            task = asyncio.ensure_future(self._write(key, request))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # One who stops waiting must not take the answer from the others, nor from the store.
        return await asyncio.shield(self._under_way[key])

    async def close(self) -> None:
        """Wait for calls under way, let go of the writer's connections, and let others write to the store."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self.writer.close()
        self.store.close()

    async def _write(self, key: str, request: Request) -> Answer:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        async with self._slots:
            self.counts.asked += 1
            try:
                answer = await self.writer.write(request)
            except CallFailed:
                self.counts.failed += 1
                raise
            await self.store.put(key, answer)
        self.counts.answered += 1
        return answer


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return, in their order; when one fails, the others have ended before its error is raised.

    ``asyncio.gather`` leaves the others running: an error of theirs that nobody takes is told by the garbage collector,
    whenever and wherever that runs. Calls under way are not lost, for :meth:`CallKeeper.ask` shields them.
    """
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
