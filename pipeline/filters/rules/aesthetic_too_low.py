"""The corpus's predictor of taste scores the picture low."""

from __future__ import annotations

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_aesthetic: float | None = None


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too low."""
    return outside(view.numbers.get("aesthetic"), view, config, least=config.min_aesthetic, of=PICTURES)
