"""A text says the same words again and again: spam for a search engine, a menu, a generator that went round in circles."""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    max_repeated_words: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of a text's three-word sequences that stood in it before; 0.3 is far above any prose."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts repeats more."""
    most = config.max_repeated_words
    return most is not None and any(repeated_words(text) > most for text in view.texts)


def repeated_words(text: str) -> float:
    """Share of three-word sequences, in any case of letters, that occurred before; 0 below three words."""
    words = text.casefold().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0
