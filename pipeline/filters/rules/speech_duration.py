"""Speech shorter or longer than asked for."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import SPEECH, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_speech_s: float | None = Field(default=None, ge=0.0)
    max_speech_s: float | None = Field(default=None, gt=0.0)


def leaves_out(view: View, config: Keys) -> bool:
    """Whether its longest speech is outside."""
    seconds = view.numbers.get("speech_s")
    return outside(seconds, view, config, least=config.min_speech_s, most=config.max_speech_s, of=SPEECH)
