"""Lists of evaluation items, as people have them: jsonl, csv, tsv or txt with ids, texts or sha256 of files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.signatures import name_digest, normal_text, text_sha256
from shards.errors import ConfigError
from tokenize_jobs.dedup_config import By, ListConfig

_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything the lists name, with ``<list>:<entry>`` for each; of two equal entries the first is named.

    Attributes:
        names: digest of an id or name.
        texts: sha256 of a normalised text.
        media: sha256 of a file.
    """

    names: dict[int, str] = field(default_factory=dict[int, str])
    texts: dict[bytes, str] = field(default_factory=dict[bytes, str])
    media: dict[bytes, str] = field(default_factory=dict[bytes, str])


def read_lists(lists: tuple[ListConfig, ...]) -> Listed:
    """Read all lists.

    Raises:
        ConfigError: a file is missing, of an unknown kind, damaged, or lacks a column it should have.
    """
    listed = Listed()
    for given in lists:
        rows = 0
        for number, entry in enumerate(_entries(given), start=1):
            _add(listed, given, entry, number)
            rows = number
        if not rows:
            raise ConfigError(f"{given.file}: expected evaluation items of the list {given.name}, found none")
    return listed


def _add(listed: Listed, given: ListConfig, entry: dict[By, list[str]], number: int) -> None:
    named = f"{given.name}:{entry['id'][0] if entry.get('id') else number}"
    for name in entry.get("id", ()):
        listed.names.setdefault(name_digest(name), named)
    for text in entry.get("text", ()):
        normal = normal_text(text)
        if len(normal) >= given.min_chars:
            listed.texts.setdefault(text_sha256(normal), named)
    for digest in entry.get("media", ()):
        if not _SHA256.fullmatch(digest):
            raise ConfigError(f"{given.file}: item {number}: expected 64 hex digits of a sha256, found {digest[:80]!r}")
        listed.media.setdefault(bytes.fromhex(digest), named)


def _entries(given: ListConfig) -> Iterator[dict[By, list[str]]]:
    kind = given.file.suffix.lower()
    readers = {".jsonl": _jsonl, ".csv": _table, ".tsv": _table, ".txt": _lines}
    if kind not in readers:
        raise ConfigError(
            f"{given.file}: expected a list in {', '.join(readers)}, found {kind or 'no ending'}; convert it"
        )
    try:
        yield from readers[kind](given)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{given.file}: expected the evaluation list {given.name}, found an error: {error}"
        ) from error


def _jsonl(given: ListConfig) -> Iterator[dict[By, list[str]]]:
    with given.file.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ConfigError(f"{given.file}: line {number}: expected an object, found {type(record).__name__}")
                yield _columns(given, record, number)


def _table(given: ListConfig) -> Iterator[dict[By, list[str]]]:
    with given.file.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if given.file.suffix.lower() == ".tsv" else ",")
        for number, row in enumerate(rows, start=2):
            yield _columns(given, row, number)


def _lines(given: ListConfig) -> Iterator[dict[By, list[str]]]:
    both = set(given.by) == {"id", "text"}
    if len(given.by) > 1 and not both:
        raise ConfigError(
            f'{given.file}: a txt has one value a line, or by = ["id", "text"]; found by = {list(given.by)}'
        )
    for line in given.file.read_text(encoding="utf-8-sig").splitlines():
        if both and line.strip():
            first, _, rest = line.strip().partition(" ")
            yield {"id": [first], "text": [rest]}
        elif line.strip():
            yield {by: [line.strip()] for by in given.by}


def _columns(given: ListConfig, row: dict[str, Any], number: int) -> dict[By, list[str]]:
    return {by: _values(given, row, by, number) for by in given.by}


def _values(given: ListConfig, row: dict[str, Any], by: By, number: int) -> list[str]:
    column = str(getattr(given.columns, by))
    value = row.get(column)
    if value is None:
        found = ", ".join(map(str, row))
        raise ConfigError(
            f"{given.file}: line {number}: expected the column {column!r}, found {found}; "
            f"set columns.{by} of the list {given.name}"
        )
    return [str(one) for one in (value if isinstance(value, list) else [value]) if str(one)]
