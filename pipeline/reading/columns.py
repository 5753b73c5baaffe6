"""Columns by what they mean: published tables call the same thing by many names.

A reader says for each role (``media``, ``text``, ``url`` ...) which names a column of that role may have; the first name
that a table has counts. So one reader takes the tables of many publishers as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.reading.outcomes import numbers
from shards.errors import SampleError

MEDIA, TEXT, ID, URL, LICENCE = "media", "text", "id", "url", "licence"
# What publishers call the quality fields that filters know by another name.
_ALIASES = {"aesthetic_score": "aesthetic", "clip_similarity": "similarity"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read.

    Attributes:
        roles: role -> names in order of preference.
        quality: names of numbers that filters read, compared without regard to case.
        required: roles without which a table cannot be read.
    """

    roles: Mapping[str, tuple[str, ...]]
    quality: tuple[str, ...] = ()
    required: tuple[str, ...] = (MEDIA, TEXT)

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """Role or quality field -> the name of its column, of those that a table has.

        Raises:
            SampleError: ``header_malformed``: a required role has no column, or a column that counts comes twice.
        """
        listed = list(names)
        missing = [role for role in self.required if not set(self.roles[role]) & set(listed)]
        if missing:
            wanted = " and ".join(" or ".join(self.roles[role]) for role in missing)
            raise SampleError("header_malformed", f"expected a column {wanted}, found {', '.join(listed)[:200]}")
        found = self.present(listed)
        twice = sorted(name for name in found.values() if listed.count(name) > 1)
        if twice:
            raise SampleError("header_malformed", f"expected each column once, found {twice[0]!r} more often")
        return found

    def present(self, names: Iterable[str]) -> dict[str, str]:
        """As :meth:`find`, of a record that may lack anything."""
        listed = list(names)
        found: dict[str, str] = {}
        for name in listed:
            field = _ALIASES.get(name.lower(), name.lower())
            if field in self.quality:
                found.setdefault(field, name)
        for role, choices in self.roles.items():
            name = next((choice for choice in choices if choice in listed), None)
            if name is not None:
                found[role] = name
        return found


def quality_of(values: Mapping[str, Any], columns: Columns) -> dict[str, float]:
    """The quality fields of a row that hold a number."""
    return numbers(values, columns.quality)


def text_of(values: Mapping[str, Any], role: str) -> str:
    """An optional text of a row, such as a url; empty if there is none."""
    value = values.get(role)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
