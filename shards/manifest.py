"""One JSON file per dataset: what is in it, what made it, and what did not get in.

``manifest.json`` is written last; a folder without one is not a dataset yet. Its ``fingerprint`` covers everything
that decides the bytes: vocabulary, tokenizer weights and code version, templates, config, format version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from shards.errors import DatasetError
from shards.vocabulary import Vocabulary
from shards.writer import commit_pieces

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
class PackedEntry(ShardEntry):
    """A packed shard: ``rest_crc32`` is of all that is not ids, which a reader checks at once (:mod:`shards.open_shard`)."""

    rest_crc32: int | None = None


def to_entry(data: Mapping[str, Any]) -> ShardEntry:
    """The entry that was written as ``asdict`` of it."""
    return PackedEntry(**data) if "rest_crc32" in data else ShardEntry(**data)


class ShardTable(Sequence[ShardEntry]):
    """The entries of many shards in columns: a seventh of the memory of as many objects. Equal to any sequence of them."""

    SCHEMA = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("num_rows", pa.int64(), nullable=False),
            pa.field("num_bytes", pa.int64(), nullable=False),
            pa.field("sha256", pa.binary(), nullable=False),
            pa.field("tokens", pa.map_(pa.string(), pa.int64()), nullable=False),
        ]
    )
    _BATCH = 1000

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def build(cls, shards: Iterable[ShardEntry]) -> ShardTable:
        """From entries, a thousand of them in memory at a time."""
        rest = iter(shards)
        batches: list[pa.RecordBatch] = []
        while batch := list(islice(rest, cls._BATCH)):
            rows = [(s.path, s.num_rows, s.num_bytes, bytes.fromhex(s.sha256), list(s.tokens.items())) for s in batch]
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, cls.SCHEMA, strict=True)]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=cls.SCHEMA))
        return cls(pa.Table.from_batches(batches, schema=cls.SCHEMA).combine_chunks())

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> ShardTable: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | ShardTable:
        if isinstance(index, slice):
            return ShardTable(self._table.take(pa.array(range(*index.indices(len(self))), pa.int64())))
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"shard {index}: expected one of {len(self)}")
        return next(_to_shards(self._table.slice(number, 1)))

    def __iter__(self) -> Iterator[ShardEntry]:
        for start in range(0, len(self), self._BATCH):
            yield from _to_shards(self._table.slice(start, self._BATCH))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardTable):
            return self._table.equals(other._table)
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards)"


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
    shards: Sequence[ShardEntry]
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
    """Commit ``folder/manifest.json`` atomically; the bytes depend on the manifest alone.

    They are those of ``json.dumps(..., indent=1, sort_keys=True, ensure_ascii=False)`` and a newline. Shards are written one
    at a time, so that a million of them are not in memory twice.
    """
    commit_pieces(folder / MANIFEST_NAME, _pieces(manifest))


def _pieces(manifest: Manifest) -> Iterator[bytes]:
    data = asdict(replace(manifest, shards=())) | {
        "shards": [],
        "vocabulary": manifest.vocabulary.to_json() if manifest.vocabulary else None,
    }
    # A line break within a string is written as a backslash and an n, and deeper keys are indented more: it is there once.
    head, tail = _dump(data).split('\n "shards": []')
    yield head.encode()
    if not manifest.shards:
        yield b'\n "shards": []'
    opening = '\n "shards": [\n  '
    for shard in manifest.shards:
        yield (opening + _dump(asdict(shard)).replace("\n", "\n  ")).encode()
        opening = ",\n  "
    if manifest.shards:
        yield b"\n ]"
    yield f"{tail}\n".encode()


def _dump(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)


def _to_shards(table: pa.Table) -> Iterator[ShardEntry]:
    columns = (table[name].to_pylist() for name in ShardTable.SCHEMA.names)
    for path, num_rows, num_bytes, sha256, tokens in zip(*columns, strict=True):
        yield ShardEntry(path, num_rows, num_bytes, sha256.hex(), dict(tokens))


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises:
        DatasetError: if it is missing, cut, or lacks a field.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(to_entry(shard) for shard in data.pop("shards"))
        vocabulary = data.pop("vocabulary")
        return Manifest(shards=shards, vocabulary=Vocabulary.from_json(vocabulary) if vocabulary else None, **data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"{path}: expected a dataset's manifest, found none; run the command that makes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: expected a complete manifest, found {error!r}; make the dataset again") from error
