"""One structured line per event, beside the dataset and not in it: a log has times, a dataset has none.

``OUTPUT.log.jsonl`` grows with every run that does something; a run that does nothing leaves no line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import structlog

from tokenize_jobs.ledger import Entry
from tokenize_jobs.plan import Unit


def log_path(output: Path) -> Path:
    """Where the log of a dataset lies."""
    return output.with_name(output.name + ".log.jsonl")


class JobLog:
    """The log of one corpus in one run; opened as a context."""

    def __init__(self, *, corpus: str, output: Path) -> None:
        self._corpus = corpus
        self._path = log_path(output)

    def __enter__(self) -> JobLog:
        self._file: TextIO = self._path.open("a", encoding="utf-8")
        processors = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
        logger = structlog.wrap_logger(structlog.WriteLogger(self._file), processors=processors)
        self._log = logger.bind(corpus=self._corpus)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def begun(self, *, units: int, missing: int) -> None:
        """A run starts."""
        self._log.info("tokenize_begun", units=units, missing=missing)

    def unit_done(self, unit: Unit, entry: Entry, busy_s: float) -> None:
        """A unit was committed."""
        self._log.info(
            "unit_done",
            unit=unit.name,
            source=entry.source,
            inputs=entry.inputs,
            written=entry.written,
            filtered=dict(entry.filtered),
            rejected=dict(entry.rejected),
            tokens=dict(entry.tokens),
            busy_s=round(busy_s, 3),
        )

    def finished(self, report: Mapping[str, Any]) -> None:
        """A dataset is whole."""
        self._log.info("tokenize_finished", **report)
