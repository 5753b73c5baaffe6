"""Most of the speech is silence: a recording that went wrong, or a segment with the wrong times."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import SPEECH, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_speech_silence_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of 20 ms frames below -60 dB of full scale."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(
        view.numbers.get("speech_silence_share"), view, config, most=config.max_speech_silence_share, of=SPEECH
    )
