"""A text is in another language than asked for, as py3langid hears it.

A text counts as foreign when another language is told with at least the minimum confidence. Where none is told with that
much (names, part numbers, a word or two), the language is unknown, and ``keep_unknown`` decides.

Source: py3langid, after Lui and Baldwin 2012; 140 languages, its model comes with the package.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

from pydantic import Field, field_validator

from pipeline.filters.view import RuleConfig, View
from shards.errors import ConfigError

_MISSING = "filters.languages: expected the package py3langid, found none; pip install py3langid, or leave the key out"
_CODES = (
    "af am an ar as az be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr ga gl gu he hi hr ht hu hy id is it "
    "ja jv ka kk km kn ko ku ky la lb lo lt lv mg mk ml mn mr ms mt ne nl nn no oc or pa pl ps pt qu ro ru rw se si sk sl "
    "sq sr sv sw ta te th tl tr ug uk ur vi vo wa xh zh zu"
)
LONG_KNOWN = frozenset(_CODES.split())
"""Languages that every release has told apart: a config that names these is checked without the second of loading."""


class Keys(RuleConfig):
    """Of this rule."""

    languages: tuple[str, ...] | None = None
    """Codes of two or three letters, such as "en"."""
    min_language_confidence: float = Field(default=0.6, ge=0.0, le=1.0)
    """From which on a language counts as known. Below 0.6, short English sentences pass for Nigerian Pidgin."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if languages is None:
            return None
        if find_spec("py3langid") is None:
            raise ConfigError(_MISSING)
        named = set(languages)
        unknown = sorted(named - set(_identifier().labels)) if named - LONG_KNOWN else []
        if not languages or unknown:
            raise ValueError(
                f"expected codes of languages that py3langid knows, such as 'en', found {unknown or 'none at all'}"
            )
        return languages


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its texts is foreign, or of unknown language where that does not do."""
    if config.languages is None:
        return False
    told = [tell_language(text) for text in view.texts]
    return any(
        language not in config.languages if confidence >= config.min_language_confidence else not config.keep_unknown
        for language, confidence in told
    )


def tell_language(text: str) -> tuple[str, float]:
    """The likeliest language of a text, and its probability."""
    language, confidence = _identifier().classify(text)
    return str(language), float(confidence)


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    """Loaded once a process, a second's work; the package's own is shared, and its settings with it."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
