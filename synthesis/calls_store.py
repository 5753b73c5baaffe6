"""Every answered call, once, on disk before it is used: ``OUTPUT/calls/answers-NNNNNN.jsonl``.

A run appends to a file of its own, a line a call: the request's key, the answer, and a checksum of both. A line is synced
before its answer is handed out; calls that end at the same time share one sync. Kill -9 can only tear the last line, and a
line that is torn, or damaged in any way, counts as never written. Prompts are not stored: the config makes them again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import DatasetError
from synthesis.calls import Answer

_NAME = "answers-{:06d}.jsonl"
_CHECK_DIGITS = 16


class AnswerStore:
    """The answers of an output folder; one process at a time writes them.

    Attributes:
        input_tokens, output_tokens: of all answers, and of calls that were paid for and lost.
    """

    def __init__(self, folder: Path, *, patience_s: float = 60.0) -> None:
        """Open for reading and appending.

        Args:
            patience_s: how long to wait for a writer that was killed and is not gone yet.

        Raises:
            DatasetError: another process goes on writing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock: int | None = _lock(folder / "lock", patience_s)
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self.input_tokens = self.output_tokens = 0
        files = sorted(folder.glob("answers-*.jsonl"))
        for path in files:
            self._read(path)
        self._path = folder / _NAME.format(int(files[-1].stem.rpartition("-")[2]) + 1 if files else 0)
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The answer of a request, if it has one."""
        if key not in self._places:
            return None
        path, start, size = self._places[key]
        with path.open("rb") as file:
            file.seek(start)
            record = _record(file.read(size))
        return None if record is None else Answer(**record["answer"])

    async def put(self, key: str, answer: Answer) -> None:
        """Append an answer; it is on disk when this returns."""
        await self._append({"key": key, "answer": asdict(answer)})
        self._count(answer.input_tokens, answer.output_tokens)

    async def put_lost(self, key: str, *, input_tokens: int, output_tokens: int) -> None:
        """Note a call that may have been charged and gave no answer; it stays unanswered, and its cost counts."""
        await self._append({"key": key, "lost": [input_tokens, output_tokens]})
        self._count(input_tokens, output_tokens)

    def close(self) -> None:
        """Close the file and let others write."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _count(self, input_tokens: int, output_tokens: int) -> None:
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    async def _append(self, record: dict[str, Any]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_line(record), done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._flush())
        await done

    async def _flush(self) -> None:
        """Write and sync what waits, until nothing does: all that came during one sync share the next."""
        while self._waiting:
            lines, self._waiting = self._waiting, []
            try:
                start = await asyncio.to_thread(self._write, b"".join(line for line, _ in lines))
            except OSError as error:
                for _, done in lines:
                    if not done.done():
                        done.set_exception(error)
                continue
            for line, done in lines:
                self._place(line, start)
                start += len(line)
                if not done.done():
                    done.set_result(None)

    def _write(self, data: bytes) -> int:
        """Append and sync; where the data begin. What a full disk took of the last try lies before them."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        start = os.fstat(self._file).st_size
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        return start

    def _place(self, line: bytes, start: int) -> None:
        record = _record(line)
        if record is not None and "answer" in record:
            self._places[record["key"]] = (self._path, start, len(line))

    def _read(self, path: Path) -> None:
        for start, line in _lines(path):
            record = _record(line)
            if record is None:
                continue
            if "answer" in record:
                self._places[record["key"]] = (path, start, len(line))
                self._count(record["answer"]["input_tokens"], record["answer"]["output_tokens"])
            else:
                self._count(*record["lost"])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield start, line
            start += len(line)


def _line(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return hashlib.sha256(data).hexdigest()[:_CHECK_DIGITS].encode("ascii") + b" " + data + b"\n"


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line holds, or None where it is not what was written."""
    check, _, data = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(data).hexdigest()[:_CHECK_DIGITS].encode("ascii") != check:
        return None
    return json.loads(data)


def _lock(path: Path, patience_s: float) -> int:
    """An open, locked file; the lock goes with the process, however it ends."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise DatasetError(
                    f"{path.parent}: expected to be the only writer, found another one at work; wait until it ends"
                ) from None
            time.sleep(0.1)
        else:
            return lock
