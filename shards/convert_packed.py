"""Packed datasets to the formats of other loaders and back: Megatron ``.bin/.idx``, MDS, WebDataset.

Export writes the foreign files and beside them what they have no place for (:mod:`shards.convert_sidecar`); import of such
a folder gives back the same dataset, file for file. Import of anybody's files needs a vocabulary, and fills rows as
:mod:`shards.convert_rows` says. Either way the rows pass by a shard at a time, the result is written under a temporary name
and renamed as a whole, and a folder that holds something else is refused.

A format is a module with ``write``, ``inputs`` and ``read``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from shards import convert_mds, convert_megatron, convert_webdataset
from shards.convert_rows import UNKNOWN_DIRECTION, FillCounts, ForeignRow, fill_rows, shard_digest, to_packed
from shards.convert_sidecar import (
    CONVERTER_VERSION,
    FOLDER,
    REJECTS_NAME,
    Sidecar,
    made_of,
    read_sidecar,
    write_sidecar,
)
from shards.errors import ConfigError, DatasetError
from shards.lease import exclusive_writer
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, fingerprint, read_manifest, write_manifest
from shards.open_shard import open_shard
from shards.packed import FORMAT_VERSION, PackedRow, sidecar_path, write_packed_shard
from shards.reader import PackedDataset, open_packed
from shards.storage import local_only
from shards.vocabulary import Vocabulary
from shards.writer import TEMPORARY_SUFFIX, commit_bytes, file_sha256

ROWS_PER_SHARD = 1 << 13


class Reader(Protocol):
    """How a format is read."""

    def __call__(self, source: Path, *, column: str, sidecar: Sidecar | None) -> Iterator[ForeignRow]:
        """Rows, or documents, in file order."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """What the commands need of a format."""

    write: Callable[[Path, PackedDataset], None]
    inputs: Callable[[Path], list[Path]]
    read: Reader


FORMATS = {
    name: Format(module.write, module.inputs, module.read)
    for name, module in (
        ("megatron", convert_megatron),
        ("mds", convert_mds),
        ("webdataset", convert_webdataset),
    )
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user says of files that nobody described; all of it is ignored where the sidecar is.

    Attributes:
        sequence_length: None for the length of the first sample, where samples are stored with padding.
        column: that holds the ids, where a format has several; empty for the usual ones.
    """

    vocabulary: Vocabulary | None = None
    sequence_length: int | None = None
    column: str = ""


def export_packed(dataset: Path, output: Path, format: str) -> Manifest:
    """Write a packed dataset in a foreign format; does nothing if ``output`` is just that already.

    Returns:
        The manifest of what was exported.

    Raises:
        ConfigError: ``format`` is none of :data:`FORMATS`.
        DatasetError: no packed dataset, a damaged one, or ``output`` holds something else.
    """
    kind = _format(format)
    opened = open_packed(dataset)
    found = read_sidecar(output, format) if (output / FOLDER).is_dir() else None
    if found is not None and found.made_of == made_of(dataset, format):
        return opened.manifest
    with new_folder(output) as folder:
        kind.write(folder, opened)
        write_sidecar(folder, opened, format)
    return opened.manifest


def import_packed(
    source: Path, output: Path, format: str, wanted: Wanted | None = None, *, rows_per_shard: int = ROWS_PER_SHARD
) -> Manifest:
    """Make a packed dataset of foreign files; does nothing if ``output`` is just that already.

    Args:
        rows_per_shard: of files without a sidecar.

    Raises:
        ConfigError: ``format`` is none of :data:`FORMATS`, or files without a sidecar lack a vocabulary or row length.
        DatasetError: the files are damaged, their sidecar is another's, or ``output`` holds something else.
    """
    kind, wanted = _format(format), wanted or Wanted()
    sidecar = read_sidecar(source, format)
    if sidecar is not None:
        done = _finished(output, sidecar.origin.fingerprint)
        if done is not None and done.num_rows == sidecar.origin.num_rows:
            return done
        return _restore(kind, source, sidecar, output)
    if wanted.vocabulary is None:
        raise ConfigError(
            f"{source}: expected the sidecar {FOLDER}/ of an export, found none; say what the ids mean with --vocabulary"
        )
    facts = {
        "converter": CONVERTER_VERSION,
        "format": format,
        "files": [[path.name, file_sha256(path)] for path in kind.inputs(source)],
        "vocabulary": wanted.vocabulary.fingerprint,
        "sequence_length": wanted.sequence_length,
        "column": wanted.column,
        "rows_per_shard": rows_per_shard,
    }
    done = _finished(output, fingerprint(facts))
    return done or _adopt(kind, source, output, wanted, wanted.vocabulary, facts)


@contextmanager
def new_folder(output: Path) -> Generator[Path]:
    """A folder that takes the place of ``output``, which is absent or empty, when the block ends well.

    Raises:
        DatasetError: ``output`` holds something, or another run is writing it.
    """
    work = local_only(output, "converted datasets").with_name(output.name + TEMPORARY_SUFFIX)
    _check_empty(output)
    with exclusive_writer(work):
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield work
            _check_empty(output)
            work.replace(output)
        except BaseException:
            shutil.rmtree(work)
            raise
    parent = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _restore(kind: Format, source: Path, sidecar: Sidecar, output: Path) -> Manifest:
    """The dataset as it was exported."""
    origin = sidecar.origin
    vocabulary, length = origin.vocabulary, int(origin.extra["sequence_length"])
    assert vocabulary is not None  # read_sidecar refuses a manifest without
    rows = kind.read(source, column="", sidecar=sidecar)
    entries: list[ShardEntry] = []
    with new_folder(output) as folder:
        for entry, digest in zip(origin.shards, sidecar.digests, strict=True):
            placements = sidecar.placements(entry)
            packed = [
                to_packed(row, placed, vocabulary=vocabulary, sequence_length=length)
                for placed, row in zip(placements, rows, strict=False)
            ]
            if len(packed) != entry.num_rows:
                raise _changed(source, f"{origin.num_rows:,} rows", f"none after {len(packed):,} of {entry.path}")
            written = write_packed_shard(folder / entry.path, packed, vocabulary=vocabulary, sequence_length=length)
            if (found := shard_digest(open_shard(folder / entry.path))) != digest:
                raise _changed(source, f"rows of {entry.path} with CRC-32 {digest}", found)
            entries.append(replace(written, path=entry.path))
        if next(rows, None) is not None:
            raise _changed(source, f"{origin.num_rows:,} rows", "more")
        if REJECTS_NAME in sidecar.files:
            commit_bytes(folder / REJECTS_NAME, sidecar.read(Path(REJECTS_NAME)))
        return _finish(folder, replace(origin, shards=tuple(entries)))


def _changed(source: Path, expected: str, found: str) -> DatasetError:
    return DatasetError(
        f"{source}: expected {expected}, as exported, found {found}; copy it again, or remove {FOLDER}/ there to read the "
        "files as anybody's"
    )


def _adopt(
    kind: Format, source: Path, output: Path, wanted: Wanted, vocabulary: Vocabulary, facts: dict[str, Any]
) -> Manifest:
    """A dataset of files that nobody described."""
    entries, length = _row_length(source, kind.read(source, column=wanted.column, sidecar=None), wanted)
    counts, tokens, documents = FillCounts(), 0, 0
    rows = fill_rows(entries, vocabulary=vocabulary, sequence_length=length, dataset=facts["format"], counts=counts)
    shards: list[ShardEntry] = []
    with new_folder(output) as folder:
        for batch in _batched(rows, facts["rows_per_shard"]):
            path = folder / f"shard-{len(shards):05d}.arrow"
            shards.append(write_packed_shard(path, batch, vocabulary=vocabulary, sequence_length=length))
            tokens += sum(row.num_tokens for row in batch)
            documents += sum(len(row.placements) for row in batch)
        num_rows = sum(shard.num_rows for shard in shards)
        manifest = Manifest(
            kind="packed",
            name=output.name,
            fingerprint=fingerprint(facts),
            shards=tuple(shards),
            format_version=FORMAT_VERSION,
            vocabulary=vocabulary,
            config={"converted": facts, "sequence_length": length},
            counts={
                "inputs": counts.documents + counts.empty,
                "written": counts.documents,
                "filtered": {"empty": counts.empty} if counts.empty else {},
                "rejected": {},
            },
            extra={
                "sequence_length": length,
                "fill": round(tokens / (num_rows * length), 6) if num_rows else 0.0,
                "cut": 0,
                "split": counts.split,
                "sources": {facts["format"]: tokens},
                "tokens_by_direction": {UNKNOWN_DIRECTION: tokens},
                "documents_by_direction": {UNKNOWN_DIRECTION: documents},
            },
        )
        return _finish(folder, manifest)


def _row_length(source: Path, entries: Iterator[ForeignRow], wanted: Wanted) -> tuple[Iterable[ForeignRow], int]:
    first = list(islice(entries, 1))
    length = wanted.sequence_length or (first[0].length if first else 0)
    if length < 1:
        raise ConfigError(f"{source}: expected rows of some length, found documents; say it with --sequence-length")
    return chain(first, entries), length


def _batched(rows: Iterator[PackedRow], count: int) -> Iterator[list[PackedRow]]:
    while batch := list(islice(rows, count)):
        yield batch


def _finish(folder: Path, manifest: Manifest) -> Manifest:
    names = [sidecar_path(Path(entry.path)).as_posix() for entry in manifest.shards]
    finished = replace(
        manifest, extra={**manifest.extra, "sidecars": {name: file_sha256(folder / name) for name in names}}
    )
    write_manifest(folder, finished)
    return finished


def _finished(output: Path, expected: str) -> Manifest | None:
    if not (output / MANIFEST_NAME).is_file():
        return None
    found = read_manifest(output)
    return found if found.fingerprint == expected else None


def _check_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(
            f"{output}: expected no such folder, or an empty one, found something else there; choose another output or "
            "remove it"
        )


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: expected jsonl, {', '.join(FORMATS)}; name one of them")
    return FORMATS[name]
