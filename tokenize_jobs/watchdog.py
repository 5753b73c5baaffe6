"""A sample that hangs its decoder costs its worker, not the job.

No thread can be stopped from outside in Python, and a decoder that loops inside a C library answers no signal. So a
watchdog thread notes the sample in ``OUTPUT/ledger/hangs-NNNNNN.json`` and ends the process; Ray starts another, which
does the unit again and rejects that sample (``decode_timeout``) without touching it. The note goes when the dataset is
finished; until then a run that is killed does not wait for the same sample again.

A library that keeps Python's lock while it hangs cannot be watched from here; Pillow, libsndfile and FFmpeg release it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from pipeline.samples import Filtered, RawSample, Reject
from shards.ledger import LEDGER
from shards.writer import commit_bytes

EXIT_CODE = 75


class Watchdog:
    """Watches one unit being decoded; opened as a context."""

    def __init__(self, output: Path, number: int, *, timeout_s: float) -> None:
        """
        Args:
            timeout_s: of one sample, reading and decoding together.
        """
        self._path = _note(output, number)
        self._timeout_s = timeout_s
        self._hanging = _read(self._path)
        self._sample_id = ""
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def watch(self, items: Iterable[RawSample | Filtered | Reject]) -> Iterator[RawSample | Filtered | Reject]:
        """The items, those that have hung before as rejects; the time until the next one is asked for is watched."""
        for item in items:
            if isinstance(item, RawSample) and item.sample_id in self._hanging:
                message = f"{item.sample_id}: took longer than cluster.sample_timeout_s to decode"
                yield Reject(item.sample_id, item.corpus, "decode_timeout", message, item.provenance)
                continue
            self._since, self._sample_id = time.monotonic(), item.sample_id
            yield item
            self._sample_id = ""

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout_s / 4)):
            sample_id = self._sample_id
            if sample_id and time.monotonic() - self._since > self._timeout_s:
                hanging = sorted({*self._hanging, sample_id})
                commit_bytes(self._path, (json.dumps(hanging, ensure_ascii=False) + "\n").encode())
                os._exit(EXIT_CODE)


def remove_notes(output: Path) -> None:
    """Forget what has hung; it is in the rejects by now."""
    for path in (output / LEDGER).glob("hangs-*.json"):
        path.unlink(missing_ok=True)


def _note(output: Path, number: int) -> Path:
    return output / LEDGER / f"hangs-{number:06d}.json"


def _read(path: Path) -> frozenset[str]:
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else frozenset()
