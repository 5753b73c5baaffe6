"""The corpus's classifier thinks the picture unsafe (LAION's ``punsafe``)."""

from __future__ import annotations

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    max_punsafe: float | None = None


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too high."""
    return outside(view.numbers.get("punsafe"), view, config, most=config.max_punsafe, of=PICTURES)
