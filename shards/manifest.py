"""One JSON file per dataset: what is in it, what made it, and what did not get in.

``manifest.json`` is written last; a folder without one is not a dataset yet. Its ``fingerprint`` covers everything
that decides the bytes: vocabulary, tokenizer weights and code version, templates, config, format version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import DatasetError
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One file of a dataset: path relative to the manifest, rows, tokens by modality, and its checksum."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset's passport.

    Attributes:
        kind: ``samples`` (stage A) or ``packed`` (stage B).
        vocabulary: of packed shards; None for sample shards, whose codes are codec-local.
        tokenizers: modality -> fingerprint of the codec that made its codes.
        config: the resolved config, without machine paths.
        counts: ``inputs``, ``written``, ``filtered`` and ``rejected`` (the last two: reason -> count).
        extra: facts of one kind only (packed: ``sequence_length``, ``fill``, ``sources``).
    """

    kind: str
    name: str
    fingerprint: str
    shards: tuple[ShardEntry, ...]
    format_version: int
    tokenizers: Mapping[str, str] = field(default_factory=dict[str, str])
    vocabulary: Vocabulary | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by modality over all shards."""
        total: dict[str, int] = {}
        for shard in self.shards:
            for modality, count in shard.tokens.items():
                total[modality] = total.get(modality, 0) + count
        return total


def fingerprint(facts: Any) -> str:
    """16 hex digits of the canonical JSON of ``facts``; equal facts give equal digits on every machine."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit ``folder/manifest.json`` atomically; the bytes depend on the manifest alone."""
    data = asdict(manifest) | {"vocabulary": manifest.vocabulary.to_json() if manifest.vocabulary else None}
    commit_bytes(
        folder / MANIFEST_NAME, (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises:
        DatasetError: if it is missing, cut, or lacks a field.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(ShardEntry(**shard) for shard in data.pop("shards"))
        vocabulary = data.pop("vocabulary")
        return Manifest(shards=shards, vocabulary=Vocabulary.from_json(vocabulary) if vocabulary else None, **data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"{path}: expected a dataset's manifest, found none; run the command that makes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: expected a complete manifest, found {error!r}; make the dataset again") from error
