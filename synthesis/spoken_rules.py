"""Whether a text can be said aloud and understood: the readability filter of speech-only dialogues.

Source: AnyGPT section 4.2 makes some 100,000 spoken dialogues out of text instruction sets; how they were chosen is not
published, so the rules here are ours. A text is left out under the first of these names that fits it:

``code``, ``table``, ``url`` (addresses and paths too), ``maths``, ``list``, ``markup``, ``symbols`` (what no voice can
say), ``too_long`` (a turn, a sentence or a dialogue), ``hard_to_read`` (Flesch reading ease), ``language``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pydantic import Field

from configs.load import Config

RULES_VERSION = 1
"""Raised whenever the same text would be judged otherwise by the same config."""


class ReadabilityConfig(Config):
    """What may be said aloud."""

    max_turn_words: int = Field(default=60, ge=1)
    """At 150 words a minute, 24 s."""
    max_dialogue_words: int = Field(default=180, ge=1)
    """72 s of speech, 3,600 ids of a row of 4,500."""
    max_sentence_words: int = Field(default=40, ge=1)
    min_reading_ease: float = Field(default=40.0, le=121.0)
    """Flesch: 60 is plain English, 30 an academic paper."""
    judged_from_words: int = Field(default=20, ge=1)
    """The ease of fewer words says nothing."""
    max_digits: int = Field(default=6, ge=1)
    """Digits in a row; longer numbers are ids, not quantities."""
    languages: tuple[str, ...] = ("en",)
    """Of the whole dialogue, as py3langid hears it; empty: not asked."""


_CODE = re.compile(
    r"`|^\s*(def|class|import|from|return|public|private|static|void|const|let|var|function|#include|SELECT|INSERT|UPDATE)\b"
    r".*[(){};:=*]|\w+\([^)\s]*\)\s*[;{:.]|[;{}]\s*$|</?\w+[^>]*>|\w+_\w+\(|[a-z]\w*\.[a-z]\w*\(|\b\w+::\w+|=>|->|&&|\|\|",
    re.MULTILINE,
)
_TABLE = re.compile(r"^.*\|.*\|.*$|^[^\t\n]*\t[^\t\n]*\t", re.MULTILINE)
_URL = re.compile(
    r"https?:|www\.|\b[\w-]+\.(com|org|net|io|edu|gov|co\.uk)\b|\S+@\S+\.\w+|(?<![\w.])~?/\w+/\w+|\b[A-Z]:\\|\b\w+\.(txt|pdf|csv|py|exe|json|html)\b",
    re.IGNORECASE,
)
_MATHS = re.compile(
    r"\\(frac|sqrt|sum|int|times|cdot|alpha|pi)\b|\$[^$\n]*\\|\$\$|[=≈≠≤≥±×÷√∑∫∂∞π²³]|\d\s*[+*/^<>]\s*[\dx-z(]|\b[a-z]\s*[+*^]\s*[\da-z]\b"
    r"|\w\^\w|\d+\s+-\s+\d+",
)
_LIST = re.compile(r"^\s*([-*•‣▪–]|\d{1,2}[.)]|[a-zA-Z][.)])\s+\S", re.MULTILINE)
_INLINE_LIST = re.compile(r"(?:^|\s)\(?1[.)]\s.*\s\(?2[.)]\s", re.DOTALL)
_MARKUP = re.compile(r"\*\*|__|^#{1,6}\s|\[[^\]]*\]\(|&\w+;|^>\s|\[[^\]]*\]", re.MULTILINE)
# Letters of any script are the language rule's business; what is left here no voice says as it is meant.
_SPEAKABLE = re.compile(r"[^\W_]|[\s.,;:!?'\"’‘“”()…–—\-%&$€£/°]")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?:\s+|$)|\n+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d[\d.,]*")
_VOWELS = re.compile(r"[aeiouy]+")


def unspeakable(turns: Sequence[str], config: ReadabilityConfig) -> tuple[str, str] | None:
    """The name of the first rule that a dialogue breaks, and by what; None where it can be said.

    Args:
        turns: texts as they were written, with their line breaks.
    """
    for text in turns:
        for reason, judge in _RULES:
            found = judge(text, config)
            if found:
                return reason, found
    words = sum(len(text.split()) for text in turns)
    if words > config.max_dialogue_words:
        return "too_long", f"a dialogue of {words} words"
    return _foreign(" ".join(turns), config)


def reading_ease(text: str) -> float:
    """Flesch (1948): 206.835 - 1.015 words a sentence - 84.6 syllables a word; 121 is the easiest there is."""
    words = _WORD.findall(text)
    if not words:
        return 121.0
    sentences = [one for one in _SENTENCE_END.split(text) if one and _WORD.search(one)]
    return 206.835 - 1.015 * len(words) / max(1, len(sentences)) - 84.6 * sum(map(syllables, words)) / len(words)


def syllables(word: str) -> int:
    """Of an English word: its groups of vowels, less a silent e; a number has one for each digit."""
    word = word.lower()
    if word[0].isdigit():
        return max(1, sum(sign.isdigit() for sign in word))
    count = len(_VOWELS.findall(word))
    is_silent = word.endswith("e") and not word.endswith(("le", "ee", "ye")) and count > 1
    is_silent |= word.endswith("ed") and not word.endswith(("ted", "ded")) and count > 1
    return max(1, count - is_silent)


def _matches(pattern: re.Pattern[str]) -> Callable[[str, ReadabilityConfig], str]:
    def judge(text: str, config: ReadabilityConfig) -> str:
        found = pattern.search(text)
        return found.group().strip()[:60] if found else ""

    return judge


def _listed(text: str, config: ReadabilityConfig) -> str:
    found = _LIST.search(text) or _INLINE_LIST.search(text)
    return found.group().strip()[:60] if found else ""


def _signs(text: str, config: ReadabilityConfig) -> str:
    wrong = sorted({sign for sign in text if not _SPEAKABLE.match(sign)})
    if wrong:
        return " ".join(wrong[:10])
    digits = re.search(rf"\d{{{config.max_digits + 1},}}", text)
    if digits:
        return digits.group()[:60]
    return "" if _WORD.search(text) else "no word"


def _length(text: str, config: ReadabilityConfig) -> str:
    words = len(text.split())
    if words > config.max_turn_words:
        return f"a turn of {words} words"
    longest = max(len(sentence.split()) for sentence in _SENTENCE_END.split(text))
    return f"a sentence of {longest} words" if longest > config.max_sentence_words else ""


def _ease(text: str, config: ReadabilityConfig) -> str:
    if len(_WORD.findall(text)) < config.judged_from_words:
        return ""
    ease = reading_ease(text)
    return f"reading ease {ease:.0f}" if ease < config.min_reading_ease else ""


def _foreign(text: str, config: ReadabilityConfig) -> tuple[str, str] | None:
    if not config.languages:
        return None
    import py3langid

    language, _ = py3langid.classify(text)
    return None if language in config.languages else ("language", f"{language}: {text[:60]}")


_RULES: tuple[tuple[str, Callable[[str, ReadabilityConfig], str]], ...] = (
    ("code", _matches(_CODE)),
    ("table", _matches(_TABLE)),
    ("url", _matches(_URL)),
    ("maths", _matches(_MATHS)),
    ("list", _listed),
    ("markup", _matches(_MARKUP)),
    ("symbols", _signs),
    ("too_long", _length),
    ("hard_to_read", _ease),
)
