"""Text of a corpus, made safe: what may become part of a sample, and what may not.

Repairs, each listed in ``docs/damaged-inputs.md``: control characters (NUL included) become one space, white space at
both ends goes. Everything else that is wrong is a reject with a name.

Text that spells one of our own special tokens is refused: a tokenizer would turn it into the token itself, and a caption
could open a picture or end a turn.
"""

from __future__ import annotations

import re
from typing import Any

from shards.errors import SampleError

# Dialogue and media markers of AnyGPT, of both its papers' and its released spellings, and LLaMA's own.
SPECIAL_STRINGS = (
    *(f"<{edge}o{medium}>" for medium in ("im", "sp", "mu", "au") for edge in ("s", "e")),
    *("[Human]", "[MMGPT]", "[AnyGPT]", "<eoh>", "<eos>", "<eom>", "<eot>", "<-Ins->", "<-Res->"),
    *("<s>", "</s>", "<unk>", "<pad>"),
)
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_STRINGS)) + "|<(?:👀|\U0001f5e3\ufe0f?|🎶|👂)[0-9]+>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")

# Far above any caption or sentence; a text of 4,500 tokens is about 18,000 characters, so it would not fit a row.
MAX_CHARS = 10_000


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: JSON and file names may bring half a surrogate pair."""
    return text.isascii() or _SURROGATE.search(text) is None


def decode_utf8(data: bytes, *, what: str) -> str:
    """Bytes as text; ``SampleError`` ``text_not_utf8`` otherwise."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(
            "text_not_utf8", f"{what}: expected UTF-8, found byte {data[error.start]:#04x} at {error.start}"
        ) from error


def clean_text(value: Any, *, what: str, max_chars: int = MAX_CHARS) -> str:
    """The text of a sample, repaired where that is safe.

    Args:
        value: whatever stands in the corpus.
        what: named in the error, e.g. ``caption``.

    Raises:
        SampleError: ``text_missing`` (None), ``record_malformed`` (no string), ``text_not_utf8`` (half a surrogate pair),
            ``text_empty``, ``text_too_long``, ``special_tokens_in_text``.
    """
    if value is None:
        raise SampleError("text_missing", f"{what}: expected a text, found none")
    if not isinstance(value, str):
        raise SampleError("record_malformed", f"{what}: expected a text, found {type(value).__name__}")
    if not is_utf8(value):
        raise SampleError("text_not_utf8", f"{what}: expected text that UTF-8 can hold, found a lone surrogate")
    text = _CONTROL.sub(" ", value).strip()
    if not text:
        raise SampleError("text_empty", f"{what}: expected a text, found only white space")
    if len(text) > max_chars:
        raise SampleError("text_too_long", f"{what}: expected at most {max_chars} characters, found {len(text)}")
    found = _SPECIAL.search(text)
    if found:
        raise SampleError("special_tokens_in_text", f"{what}: expected plain text, found the token {found.group()!r}")
    return text
