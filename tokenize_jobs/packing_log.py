"""Events of a packing run, a JSON line each, beside the datasets: ``OUTPUT.log.jsonl``. A log has times, a dataset none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog


@contextmanager
def packing_log(output: Path) -> Iterator[Any]:
    """A structlog logger that appends to the log of ``output``."""
    path = output.with_name(output.name + ".log.jsonl")
    with path.open("a", encoding="utf-8") as file:
        processors = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
        yield structlog.wrap_logger(structlog.WriteLogger(file), processors=processors)
