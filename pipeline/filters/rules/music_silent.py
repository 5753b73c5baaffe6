"""Too much of the music is silence."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PLAYED, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_silence_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of 20 ms frames below -60 dB of full scale."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("silence_share"), view, config, most=config.max_silence_share, of=PLAYED)
