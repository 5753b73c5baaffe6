"""One structured line per event, beside the dataset and not in it: a log has times, a dataset has none.

``OUTPUT.log.jsonl`` grows with every run that does something; a run that does nothing leaves no line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import structlog

from shards.ledger import Entry


def beside(output: Path, suffix: str) -> Path:
    """A file that belongs to a dataset and is not part of it; of one in an object store, on this machine under ``logs``."""
    folder = output.parent if isinstance(output, Path) else Path("logs")
    return folder / f"{output.name}{suffix}"


def log_path(output: Path) -> Path:
    """Where the log of a dataset lies."""
    return beside(output, ".log.jsonl")


class JobLog:
    """The log of one corpus in one run; opened as a context."""

    def __init__(self, *, corpus: str, output: Path) -> None:
        self._corpus = corpus
        self._path = log_path(output)

    def __enter__(self) -> JobLog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = self._path.open("a", encoding="utf-8")
        processors = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
        logger = structlog.wrap_logger(structlog.WriteLogger(self._file), processors=processors)
        self._log = logger.bind(corpus=self._corpus)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def begun(self, *, units: int, missing: int, fingerprint: str, retry: bool) -> None:
        """A run starts."""
        self._log.info("tokenize_begun", units=units, missing=missing, fingerprint=fingerprint, retry=retry)

    def unit_done(self, entry: Entry, row: Mapping[str, Any]) -> None:
        """A unit was committed; ``row`` has who made it and how long that took."""
        times = {name: round(float(row[name]), 3) for name in ("decode_s", "encode_s", "wait_s")}
        self._log.info(
            "unit_done",
            unit=entry.unit,
            source=entry.source,
            inputs=entry.inputs,
            written=entry.written,
            filtered=dict(entry.filtered),
            rejected=dict(entry.rejected),
            tokens=dict(entry.tokens),
            sound_s={name: round(seconds, 3) for name, seconds in entry.seconds.items()},
            images=entry.images,
            source_bytes=entry.source_bytes,
            **times,
            busy_s=round(times["decode_s"] + times["encode_s"], 3),
            device=row["device"],
            worker=row["worker"],
        )

    def finished(self, report: Mapping[str, Any]) -> None:
        """A dataset is whole."""
        self._log.info("tokenize_finished", **report)
