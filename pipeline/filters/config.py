"""Which rules there are, in the order they are asked, and the keys of all of them together.

A rule is a file in ``pipeline/filters/rules``: its name is the reason in the report, its ``Keys`` are its thresholds, and
``leaves_out`` is the question. The first rule that says yes is the one that is counted; cheap ones come first.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pipeline.filters.lists import read_lines
from pipeline.filters.rules import (
    aesthetic_too_low,
    boilerplate,
    caption_too_long,
    caption_too_short,
    characters_repeated,
    clip_score_too_low,
    language_foreign,
    letters_too_few,
    music_clipped,
    music_head_silent,
    music_silent,
    picture_count,
    picture_flat,
    picture_too_long,
    picture_too_small,
    placeholder,
    similarity_too_low,
    speech_duration,
    speech_pause,
    speech_rate,
    speech_silent,
    unsafe,
    watermarked,
    word_count,
    words_repeated,
)

RULES_VERSION = 1
"""Raised whenever a rule says something else about the same sample and the same config."""

Rules = tuple[ModuleType, ...]

RAW_RULES: Rules = (
    caption_too_short,
    caption_too_long,
    similarity_too_low,
    unsafe,
    watermarked,
    aesthetic_too_low,
    picture_count,
    word_count,
    letters_too_few,
    characters_repeated,
    words_repeated,
    boilerplate,
    picture_too_small,
    picture_too_long,
    language_foreign,
)
"""On what a corpus says, before any medium is decoded."""
DECODED_RULES: Rules = (
    speech_duration,
    speech_rate,
    speech_silent,
    speech_pause,
    music_silent,
    music_head_silent,
    music_clipped,
    placeholder,
    picture_flat,
)
"""On what was decoded and measured."""
SCORED_RULES: Rules = (clip_score_too_low,)
"""On what a model says of those that are left: the dearest question comes last."""


class FilterConfig(
    caption_too_short.Keys,
    caption_too_long.Keys,
    similarity_too_low.Keys,
    unsafe.Keys,
    watermarked.Keys,
    aesthetic_too_low.Keys,
    picture_count.Keys,
    word_count.Keys,
    letters_too_few.Keys,
    characters_repeated.Keys,
    words_repeated.Keys,
    boilerplate.Keys,
    picture_too_small.Keys,
    picture_too_long.Keys,
    language_foreign.Keys,
    speech_duration.Keys,
    speech_rate.Keys,
    speech_silent.Keys,
    speech_pause.Keys,
    music_silent.Keys,
    music_head_silent.Keys,
    music_clipped.Keys,
    placeholder.Keys,
    picture_flat.Keys,
    clip_score_too_low.Keys,
):
    """Thresholds; every rule is off until its key is set."""


def rule_name(rule: ModuleType) -> str:
    """The name a rule is counted under: that of its file."""
    return rule.__name__.rpartition(".")[2]


def rules_in_force(config: FilterConfig, rules: Rules) -> Rules:
    """Those of ``rules`` of which the config sets any key, in their order."""
    return _in_force(cast(Hashable, config), rules)


def filter_facts(config: FilterConfig) -> dict[str, Any]:
    """What rules depend on besides the thresholds, as plain data for a fingerprint: code, and what files hold.

    Raises:
        ConfigError: one of the files cannot be read.
    """
    facts: dict[str, Any] = {"version": RULES_VERSION}
    for key in ("boilerplate_file", "placeholders_file"):
        path: Path | None = getattr(config, key)
        if path is not None:
            facts[key] = _entries_sha256(path, key)
    if config.clip_plug is not None and config.clip_model and Path(config.clip_model).exists():
        facts["clip_model"] = _tree_sha256(Path(config.clip_model))
    return facts


@functools.lru_cache(maxsize=64)
def _in_force(config: Any, rules: Rules) -> Rules:
    """Asked for every sample; a frozen config can be hashed, though its type does not say so."""
    return tuple(rule for rule in rules if any(_is_set(config, key) for key in rule.Keys.__annotations__))


def _is_set(config: FilterConfig, key: str) -> bool:
    return getattr(config, key) != FilterConfig.model_fields[key].default


def _entries_sha256(path: Path, key: str) -> str:
    return hashlib.sha256("\n".join(read_lines(path, key=f"filters.{key}")).encode()).hexdigest()


def _tree_sha256(root: Path) -> str:
    """Of names and contents of all files below a folder, or of one file."""
    digest = hashlib.sha256()
    for path in _files(root):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    yield from sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else (root,)
