"""A text of fewer or more words than asked for: a caption, or a whole document.

Words are what white space separates, so this is a rule for languages that write it.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=1)
    """Of a caption, a transcript, or all other text of a sample together."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts is outside."""
    least, most = config.min_words, config.max_words
    if least is None and most is None:
        return False
    counts = [len(text.split()) for text in view.texts]
    return any((least is not None and n < least) or (most is not None and n > most) for n in counts)
