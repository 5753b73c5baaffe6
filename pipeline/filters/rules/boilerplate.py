"""A text holds a phrase that says something about a page and nothing about its picture, such as "click to enlarge".

Phrases are compared word by word, whatever the case of letters and the white space between words.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pipeline.filters.lists import read_lines
from pipeline.filters.view import RuleConfig, View


class Keys(RuleConfig):
    """Of this rule."""

    boilerplate: tuple[str, ...] = ()
    """Phrases that no text may hold."""
    boilerplate_file: Path | None = None
    """More of them, one a line; lines with ``#`` in front are comments. configs/filters/boilerplate.txt has a start."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts holds one."""
    phrases = _pattern(config.boilerplate, config.boilerplate_file)
    return phrases is not None and any(phrases.search(_plain(text)) for text in view.texts)


@functools.lru_cache(maxsize=8)
def _pattern(listed: tuple[str, ...], file: Path | None) -> re.Pattern[str] | None:
    phrases = [*listed, *(read_lines(file, key="filters.boilerplate_file") if file is not None else ())]
    plain = sorted({_plain(phrase) for phrase in phrases} - {""})
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, plain))})(?!\w)") if plain else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
