"""A caption or transcript is longer than a picture or a sound can mean."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    max_caption_chars: int | None = Field(default=None, ge=1)


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its captions is longer."""
    most = config.max_caption_chars
    return most is not None and any(len(text) > most for text in view.captions)
