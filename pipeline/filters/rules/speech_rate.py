"""More or fewer characters a second than anybody speaks: the transcript belongs to another sound."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import SPEECH, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_chars_per_s: float | None = Field(default=None, ge=0.0)
    max_chars_per_s: float | None = Field(default=None, gt=0.0)
    """Of the transcript; a language written in syllables or words has fewer of them."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether its rate is outside."""
    rate = view.numbers.get("chars_per_s")
    return outside(rate, view, config, least=config.min_chars_per_s, most=config.max_chars_per_s, of=SPEECH)
