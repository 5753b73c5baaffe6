"""Speech with a long silence: words are missing there, or the clip begins too early or ends too late."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import SPEECH, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_pause_s: float | None = Field(default=None, ge=0.0)
    """Seconds on end below -60 dB of full scale, at either end or in between."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("longest_pause_s"), view, config, most=config.max_pause_s, of=SPEECH)
