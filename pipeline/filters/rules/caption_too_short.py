"""A caption or transcript says next to nothing."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    min_caption_chars: int | None = Field(default=None, ge=0)


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its captions is shorter."""
    least = config.min_caption_chars
    return least is not None and any(len(text) < least for text in view.captions)
