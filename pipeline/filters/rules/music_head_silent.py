"""Music that begins with silence.

Tracks do, and a window is cut from their start; the published samples of AnyGPT show it.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PLAYED, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_head_silence_s: float | None = Field(default=None, ge=0.0)
    """Seconds below -60 dB of full scale before the first sound."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("head_silence_s"), view, config, most=config.max_head_silence_s, of=PLAYED)
