"""The picture is one that stands for another: "image no longer available".

They are known by their bytes, so the list holds the SHA-256 of media files, as ``media_sha256`` in the shards has it. One
dead-link picture occurs several times among the published tokens of LAION-COCO; lists of ours begin with what occurs most.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pydantic import field_validator

from pipeline.filters.lists import read_lines
from pipeline.filters.view import RuleConfig, View
from shards.errors import ConfigError

_SHA256 = re.compile("[0-9a-f]{64}")


class Keys(RuleConfig):
    """Of this rule."""

    placeholders: tuple[str, ...] = ()
    """SHA-256 of media files, 64 hex digits each."""
    placeholders_file: Path | None = None
    """More of them: one at the start of each line, and after it whatever there is to say."""

    @field_validator("placeholders")
    @classmethod
    def _are_hashes(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [text for text in listed if not _SHA256.fullmatch(text.lower())]
        if wrong:
            raise ValueError(f"expected the SHA-256 of a file, 64 hex digits, found {wrong[0]!r}")
        return tuple(text.lower() for text in listed)


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its media is in the list."""
    known = _known(config.placeholders, config.placeholders_file)
    return bool(known) and any(segment.clip.media_sha256 in known for segment in view.media)


@functools.lru_cache(maxsize=8)
def _known(listed: tuple[str, ...], file: Path | None) -> frozenset[str]:
    lines = read_lines(file, key="filters.placeholders_file") if file is not None else ()
    found = [line.split()[0].lower() for line in lines]
    wrong = next((text for text in found if not _SHA256.fullmatch(text)), None)
    if wrong is not None:
        raise ConfigError(
            f"filters.placeholders_file = {file}: expected lines that begin with the SHA-256 of a file, 64 hex digits, "
            f"found {wrong!r}; take them from the column media_sha256 of a shard"
        )
    return frozenset((*listed, *found))
