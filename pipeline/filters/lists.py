"""Declared lists that rules read: text files, one entry a line."""

from __future__ import annotations

import functools
from pathlib import Path

from shards.errors import ConfigError


@functools.lru_cache(maxsize=16)
def read_lines(path: Path, *, key: str) -> tuple[str, ...]:
    """Entries of a list, without empty lines and those that begin with ``#``; read once a process.

    Args:
        key: of the config that names the file, for the error.

    Raises:
        ConfigError: the file is not there, or is no UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key} = {path}: expected a text file in UTF-8, found {type(error).__name__}; mend it or leave it out"
        ) from error
    entries = (line.strip() for line in lines)
    return tuple(entry for entry in entries if entry and not entry.startswith("#"))
