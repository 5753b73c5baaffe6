"""Music that was recorded too loud: its waves are cut off at full scale, which no codec can tell from music."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PLAYED, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_clipped_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of samples within 1 % of full scale, or beyond."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("clipped_share"), view, config, most=config.max_clipped_share, of=PLAYED)
