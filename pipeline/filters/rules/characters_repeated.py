"""Runs of one character fill a text: "!!!!!!!!", "-----", "aaaaaaaa"."""

from __future__ import annotations

import re

from pydantic import Field

from pipeline.filters.view import RuleConfig, View

_RUN = re.compile(r"(\S)\1{3,}")


class Keys(RuleConfig):
    """Of this rule."""

    max_repeated_characters: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of a text that is four or more times the same character in a row."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts has more of them."""
    most = config.max_repeated_characters
    return most is not None and any(repeated_characters(text) > most for text in view.texts)


def repeated_characters(text: str) -> float:
    """Share of a text's characters that lie in such runs; white space makes none."""
    return sum(len(run.group()) for run in _RUN.finditer(text)) / len(text) if text else 0.0
