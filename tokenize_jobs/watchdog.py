"""A sample that hangs or crashes its decoder costs its worker a few times, not the job.

No thread can be stopped from outside in Python, and a decoder that loops or crashes inside a C library answers to nobody.
So what happened to a unit is noted in ``OUTPUT/ledger/note-NNNNNN.json``, where the next worker that begins it reads it:

* A watchdog thread sees a sample that takes too long, notes it and ends the process. The next worker rejects it
  (``decode_timeout``) without touching it.
* A process that dies without a word leaves only the note that the unit was begun. From the third beginning on, each sample
  is noted before it is decoded; one that was in hand at two deaths is rejected (``decode_crash``). Machines that are lost
  are lost at random samples, and it takes the same one twice.
* A library that hangs and keeps Python's lock stops the watchdog, too. After twice the time a timer of the interpreter,
  which needs no lock, ends the process; that is a death without a word.

A note goes when its unit is committed; what happened is in the rejects by then.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from pipeline.samples import Filtered, RawSample, Reject
from shards.ledger import LEDGER
from shards.writer import commit_bytes

EXIT_CODE = 75
CAREFUL_FROM = 3
DEATHS = 2


@dataclass(slots=True)
class Note:
    """What happened to a unit that is not done.

    Attributes:
        begun: how many workers have begun to decode it.
        in_hand: the sample a worker was decoding, if it took care to say so.
        deaths: by sample, how many workers died with it in hand.
        hanging: samples that took too long.
    """

    begun: int = 0
    in_hand: str = ""
    deaths: dict[str, int] = field(default_factory=dict[str, int])
    hanging: list[str] = field(default_factory=list[str])


class Watchdog:
    """Watches one unit being decoded; opened as a context."""

    def __init__(self, output: Path, number: int, *, timeout_s: float) -> None:
        """
        Args:
            timeout_s: of one sample, reading and decoding together.
        """
        self._path = _note_path(output, number)
        self._timeout_s = timeout_s
        self._note = _read(self._path)
        if self._note.in_hand:
            deaths = self._note.deaths
            deaths[self._note.in_hand] = deaths.get(self._note.in_hand, 0) + 1
        self._note.begun += 1
        self._sample_id = ""
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._write(in_hand="")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stop.set()
        self._thread.join()
        if self._note.in_hand:
            self._write(in_hand="")

    def watch(self, items: Iterable[RawSample | Filtered | Reject]) -> Iterator[RawSample | Filtered | Reject]:
        """The items, those that have hung or crashed before as rejects; the time until the next is asked for is watched."""
        for item in items:
            reject = self._reject(item) if isinstance(item, RawSample) else None
            if reject is not None:
                yield reject
                continue
            if self._note.begun >= CAREFUL_FROM:
                self._write(in_hand=item.sample_id)
            self._since, self._sample_id = time.monotonic(), item.sample_id
            faulthandler.dump_traceback_later(2 * self._timeout_s, exit=True, file=2)
            yield item
            self._sample_id = ""

    def _reject(self, item: RawSample) -> Reject | None:
        if item.sample_id in self._note.hanging:
            reason, message = "decode_timeout", "took longer than cluster.sample_timeout_s to decode"
        elif self._note.deaths.get(item.sample_id, 0) >= DEATHS:
            reason, message = "decode_crash", f"{DEATHS} workers died while they decoded it"
        else:
            return None
        return Reject(item.sample_id, item.corpus, reason, f"{item.sample_id}: {message}", item.provenance)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout_s / 4)):
            sample_id = self._sample_id
            if sample_id and time.monotonic() - self._since > self._timeout_s:
                self._note.hanging = sorted({*self._note.hanging, sample_id})
                self._write(in_hand="")
                os._exit(EXIT_CODE)

    def _write(self, *, in_hand: str) -> None:
        self._note.in_hand = in_hand
        data = json.dumps(asdict(self._note), ensure_ascii=False) + "\n"
        commit_bytes(self._path, data.encode(), writer=f".{platform.node()}.{os.getpid()}")


def remove_note(output: Path, number: int) -> None:
    """Forget what happened to a unit; it is committed now."""
    _note_path(output, number).unlink(missing_ok=True)


def remove_notes(output: Path) -> None:
    """Forget all of it: a worker that was lost between committing a unit and forgetting has left its note."""
    for path in (output / LEDGER).glob("note-*.json"):
        path.unlink(missing_ok=True)


def _note_path(output: Path, number: int) -> Path:
    return output / LEDGER / f"note-{number:06d}.json"


def _read(path: Path) -> Note:
    return Note(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Note()
