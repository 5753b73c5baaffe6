"""The corpus's classifier sees a watermark (LAION's ``pwatermark``)."""

from __future__ import annotations

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_pwatermark: float | None = None


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("pwatermark"), view, config, most=config.max_pwatermark, of=PICTURES)
