"""The picture is a strip: a banner, a column; squashed to a square, it shows something else.

Sides as in :mod:`pipeline.filters.rules.picture_too_small`.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_aspect_ratio: float | None = Field(default=None, ge=1.0)
    """Longer side by shorter side."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its pictures is longer."""
    if config.max_aspect_ratio is None or not view.picture_sizes:
        return False
    ratios = [max(size) / min(size) if min(size) > 0 else float("nan") for size in view.picture_sizes]
    return any(outside(ratio, view, config, most=config.max_aspect_ratio, of=PICTURES) for ratio in ratios)
