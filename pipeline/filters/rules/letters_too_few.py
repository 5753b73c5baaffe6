"""Much of a text is no word: numbers, part codes, punctuation.

Letters of every script count, and the marks that Indic scripts, Arabic or Thai write onto them.
"""

from __future__ import annotations

import unicodedata

from pydantic import Field

from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    min_letter_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Of the characters that are not white space."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts has a smaller share."""
    least = config.min_letter_share
    return least is not None and any(letter_share(text) < least for text in view.texts)


def letter_share(text: str) -> float:
    """Letters and their marks by characters that are not white space; 0 for white space alone."""
    visible = "".join(text.split())
    if not visible:
        return 0.0
    letters = sum(map(str.isalpha, visible))
    if not visible.isascii():
        letters += sum(unicodedata.category(character)[0] == "M" for character in visible)
    return letters / len(visible)
