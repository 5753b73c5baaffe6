"""The stored picture's shorter side is small; blown up to 224, it shows little.

The size is the corpus's own, or else the one in the header of the file: what is decoded later is 224 x 224 always. A
document is as small as its smallest picture.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_side_px: int | None = Field(default=None, ge=1)


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its pictures is smaller."""
    if config.min_side_px is None or not view.picture_sizes:
        return False
    side = min(min(size) for size in view.picture_sizes)
    return outside(side, view, config, least=config.min_side_px, of=PICTURES)
