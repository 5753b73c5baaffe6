"""How far a job is, live: a bar on a terminal, one structured line every half minute elsewhere.

Rates are of this run, from its first unit on, so that starting Ray and loading codecs do not spoil the forecast. The
expected end counts units: they are cut to be of about equal work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

import structlog
from tqdm import tqdm

INTERVAL_S = 30.0


class Progress:
    """The progress of a call over all its corpora; opened as a context.

    Args:
        total: units of the plan.
        done: units that were done before this run.
        stream: where to show it; a terminal gets a bar, anything else lines.
        clock: seconds, for tests.
    """

    def __init__(
        self, total: int, done: int = 0, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._done_before = total, done
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._units = self._inputs = self._tokens = 0
        self._busy_s = self._wait_s = 0.0
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Progress:
        self._started = self._last = self._clock()
        self._first: tuple[float, int, int] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._done_before, unit="unit", desc="tokenize", file=self._stream
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._units:
            self._say()

    def unit(self, *, inputs: int, tokens: int, busy_s: float = 0.0, wait_s: float = 0.0) -> None:
        """Another unit is done.

        Args:
            inputs, tokens: of the unit.
            busy_s, wait_s: how long its encoder encoded, and waited for it.
        """
        self._units += 1
        self._inputs += inputs
        self._tokens += tokens
        self._busy_s += busy_s
        self._wait_s += wait_s
        if self._first is None:
            self._first = (self._clock(), inputs, tokens)
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.update()
        elif self._clock() - self._last >= INTERVAL_S:
            self._say()

    def figures(self) -> dict[str, Any]:
        """Rates, encoders' busy share and seconds left; what cannot be known yet is None, as the end is after one unit."""
        now = self._clock()
        # One unit says little about a rate, and its time has the start of everything in it; two begin to.
        since, inputs, tokens, units = self._started, self._inputs, self._tokens, self._units
        if self._first is not None and self._units > 1 and now > self._first[0]:
            since, inputs, tokens = self._first[0], inputs - self._first[1], tokens - self._first[2]
            units -= 1
        elapsed = now - since
        rate = units / elapsed if elapsed > 0 and units else None
        left = self._total - self._done_before - self._units
        held = self._busy_s + self._wait_s
        return {
            "done": self._done_before + self._units,
            "units": self._total,
            "units_per_s": _rounded(rate),
            "samples_per_s": _rounded(inputs / elapsed if rate else None),
            "tokens_per_s": _rounded(tokens / elapsed if rate else None),
            "busy_share": round(self._busy_s / held, 3) if held else None,
            "left_s": round(left / rate) if rate and (self._units > 1 or not left) else None,
        }

    def _postfix(self) -> str:
        figures = self.figures()
        parts = [f"{figures[key]:,.4g} {name}/s" for key, name in _RATES if figures[key] is not None]
        if figures["busy_share"] is not None:
            parts.append(f"busy {figures['busy_share']:.0%}")
        return ", ".join(parts)

    def _say(self) -> None:
        self._last = self._clock()
        processors = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]
        logger = structlog.wrap_logger(structlog.WriteLogger(self._stream), processors=processors)
        logger.info("tokenize_progress", **self.figures())


_RATES = (("tokens_per_s", "tokens"), ("samples_per_s", "samples"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
