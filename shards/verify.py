"""Prove that a dataset is whole: its bytes, its numbers, and the law of Table 1.

Packed shards: checksums, ids in range, spans and starts in order, every medium between its two markers, 32 codes per
picture, whole frames of speech and music with the levels in order, and the manifest's sums. Sample shards: checksums,
schema, rates, codes in their codebooks, no sample id twice. A fault names the file and the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import AnyGPTError, DatasetError
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.open_shard import OpenShard, buffer_view
from shards.packed import SIDECAR_SCHEMA, count_tokens, sidecar_path
from shards.rates import media_fault, rate_fault
from shards.reader import PackedDataset, check_sha256, check_size
from shards.records import SAMPLE_SCHEMA
from shards.storage import arrow_source, is_remote
from shards.vocabulary import Modality, Vocabulary
from shards.writer import file_sha256

MAX_ROWS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be: which file, which rows, what."""

    path: str
    what: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.path}: {self.what}"
        named = ", ".join(str(row) for row in self.rows[:MAX_ROWS_NAMED])
        more = f" and {len(self.rows) - MAX_ROWS_NAMED} more" if len(self.rows) > MAX_ROWS_NAMED else ""
        return f"{self.path}: rows {named}{more}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and what was found.

    Attributes:
        documents: placements of packed rows, or samples.
        tokens: by modality; for sample shards, code frames by modality.
    """

    folder: Path
    kind: str
    num_shards: int
    num_rows: int
    documents: int
    tokens: dict[str, int]
    faults: tuple[Fault, ...] = field(default=())


def verify_dataset(folder: Path) -> Verification:
    """Look at every byte of a dataset.

    Raises:
        DatasetError: if there is no manifest to compare with; every other fault is returned.
    """
    manifest = read_manifest(folder)
    look = {"packed": _verify_packed, "samples": _verify_samples}.get(manifest.kind)
    if look is None:
        raise DatasetError(f"{folder}: expected a dataset of kind 'packed' or 'samples', found {manifest.kind!r}")
    found = look(folder, manifest)
    return replace(found, faults=(*found.faults, *_count_faults(manifest)))


def _verify_packed(folder: Path, manifest: Manifest) -> Verification:
    dataset = PackedDataset(folder, manifest, verify="lazy")
    faults: list[Fault] = []
    tokens: Counter[str] = Counter()
    documents = 0
    for number, entry in enumerate(manifest.shards):
        try:
            path = folder / entry.path
            check_size(path, entry)
            check_sha256(path, entry.sha256, path.stat().st_mtime_ns)
            shard = dataset.shard(number)
        except AnyGPTError as error:
            faults.append(Fault(entry.path, str(error)))
            continue
        faults += _packed_faults(shard, entry, manifest)
        documents += len(shard.starts)
        tokens.update(count_tokens(shard.token_ids, shard.num_tokens, dataset.vocabulary))
    return Verification(folder, "packed", dataset.num_shards, dataset.num_rows, documents, dict(tokens), tuple(faults))


def _packed_faults(shard: OpenShard, entry: ShardEntry, manifest: Manifest) -> Iterator[Fault]:
    vocabulary = manifest.vocabulary
    assert vocabulary is not None
    path = entry.path
    ids, used = shard.token_ids, shard.num_tokens
    outside = np.flatnonzero((ids >= vocabulary.size).any(axis=1))
    if outside.size:
        yield Fault(path, f"ids outside [0, {vocabulary.size})", tuple(outside.tolist()))
        return
    if used.size and (int(used.min()) < 1 or int(used.max()) > ids.shape[1]):
        wrong = np.flatnonzero((used < 1) | (used > ids.shape[1]))
        yield Fault(path, f"num_tokens outside [1, {ids.shape[1]}]", tuple(wrong.tolist()))
        return
    found = count_tokens(ids, used, vocabulary)
    if found != dict(entry.tokens):
        yield Fault(path, f"the manifest says {dict(entry.tokens)} tokens, the rows hold {found}")
    yield from _by_row(path, (_row_fault(shard, row, vocabulary) for row in range(len(ids))))
    yield from _sidecar_faults(shard, entry, manifest)


def _by_row(path: str, messages: Iterator[str]) -> Iterator[Fault]:
    """One fault per kind of message, with all its rows."""
    rows: dict[str, list[int]] = {}
    for row, message in enumerate(messages):
        if message:
            rows.setdefault(message, []).append(row)
    for message, where in rows.items():
        yield Fault(path, message, tuple(where))


def _row_fault(shard: OpenShard, row: int, vocabulary: Vocabulary) -> str:
    used = int(shard.num_tokens[row])
    starts = shard.starts[shard.start_offsets[row] : shard.start_offsets[row + 1]]
    spans = shard.spans[shard.span_offsets[row] : shard.span_offsets[row + 1]].reshape(-1)
    if not starts.size or int(starts[0]) != 0 or (np.diff(starts) <= 0).any() or int(starts[-1]) >= used:
        return "document starts are not ascending from 0 within the row's ids"
    if spans.size and (int(spans[0]) < 0 or (np.diff(spans) <= 0).any() or int(spans[-1]) > used):
        return "loss spans are not ascending, separate and within the row's ids"
    if (shard.token_ids[row, used:] != vocabulary.pad_id).any():
        return "ids after num_tokens are not padding"
    for block in vocabulary.blocks.values():
        fault = media_fault(shard.token_ids[row, :used], block)
        if fault:
            return fault
    return ""


def _sidecar_faults(shard: OpenShard, entry: ShardEntry, manifest: Manifest) -> Iterator[Fault]:
    path = sidecar_path(shard.path)
    name = str(Path(entry.path).with_name(path.name))
    if not path.is_file():
        yield Fault(name, "the sidecar with the sample ids is missing")
        return
    expected = manifest.extra.get("sidecars", {}).get(name)
    if expected and file_sha256(path) != expected:
        yield Fault(name, "its bytes are not the bytes that were written")
        return
    table = pq.read_table(path)
    if not table.schema.equals(SIDECAR_SCHEMA):
        yield Fault(name, "its columns are not those of FORMAT.md")
        return
    rows, starts, stops = (_integers(table, column) for column in ("row", "start", "stop"))
    document_rows = np.repeat(np.arange(len(shard.token_ids)), np.diff(shard.start_offsets))
    if not (np.array_equal(rows, document_rows) and np.array_equal(starts, shard.starts)):
        yield Fault(name, "its documents are not at the shard's document starts")
    filled = np.bincount(rows, weights=stops - starts, minlength=len(shard.token_ids)).astype(np.int64)
    wrong = np.flatnonzero(filled != shard.num_tokens)
    if wrong.size:
        yield Fault(name, "its documents do not add up to num_tokens", tuple(wrong.tolist()))


def _verify_samples(folder: Path, manifest: Manifest) -> Verification:
    faults: list[Fault] = []
    frames: Counter[str] = Counter()
    seen: set[str] = set()
    num_rows = 0
    for entry in manifest.shards:
        path = folder / entry.path
        try:
            check_size(path, entry)
            check_sha256(path, entry.sha256, 0 if is_remote(path) else path.stat().st_mtime_ns)
            file = pq.ParquetFile(arrow_source(path))
        except (AnyGPTError, pa.ArrowInvalid) as error:
            faults.append(Fault(entry.path, str(error)))
            continue
        with file:
            if not file.schema_arrow.equals(SAMPLE_SCHEMA):
                faults.append(Fault(entry.path, "its columns are not those of FORMAT.md"))
                continue
            if file.metadata.num_rows != entry.num_rows:
                faults.append(
                    Fault(entry.path, f"the manifest says {entry.num_rows} rows, it has {file.metadata.num_rows}")
                )
            num_rows += file.metadata.num_rows
            found: Counter[str] = Counter()
            faults += _sample_faults(file, entry.path, seen, found)
            frames.update(found)
    return Verification(folder, "samples", len(manifest.shards), num_rows, num_rows, dict(frames), tuple(faults))


def _sample_faults(file: Any, path: str, seen: set[str], frames: Counter[str]) -> Iterator[Fault]:
    twice: list[int] = []
    wrong: dict[str, list[int]] = {}
    first = 0
    for batch in file.iter_batches(batch_size=4096, columns=["sample_id", "segments"]):
        for row, sample_id in enumerate(batch.column("sample_id").to_pylist(), start=first):
            if sample_id in seen:
                twice.append(row)
            seen.add(sample_id)
        for row, message in _segment_faults(batch.column("segments"), frames):
            wrong.setdefault(message, []).append(first + row)
        first += batch.num_rows
    if twice:
        yield Fault(path, "sample ids that are there twice", tuple(twice))
    for message, rows in wrong.items():
        yield Fault(path, message, tuple(sorted(set(rows))))


def _segment_faults(segments: Any, frames: Counter[str]) -> Iterator[tuple[int, str]]:
    """(row, fault) of every segment that breaks Table 1; all columns at once, codes stay in Arrow's buffers."""
    offsets = buffer_view(segments.offsets)
    flat = segments.flatten()
    row_of = np.repeat(np.arange(len(segments)), np.diff(offsets))
    columns = {name: flat.field(name) for name in ("modality", "text", "codes", "levels", "duration_s")}
    bounds = buffer_view(columns["codes"].offsets)
    values = buffer_view(columns["codes"].values)
    described = zip(
        columns["modality"].to_pylist(),
        columns["text"].is_valid().to_pylist(),
        columns["codes"].is_valid().to_pylist(),
        columns["levels"].to_pylist(),
        columns["duration_s"].to_pylist(),
        strict=True,
    )
    for number, (modality, has_text, has_codes, levels, duration_s) in enumerate(described):
        row = int(row_of[number])
        if modality == Modality.TEXT:
            if has_codes or not has_text:
                yield row, "a text segment without text, or with codes"
            continue
        if has_text or not has_codes or not levels:
            yield row, f"{modality}: a medium without codes, or with text"
            continue
        codes = values[bounds[number] : bounds[number + 1]]
        frames[modality] += len(codes) // levels
        message = rate_fault(modality, codes, levels, duration_s)
        if message:
            yield row, message


def _count_faults(manifest: Manifest) -> Iterator[Fault]:
    counts = manifest.counts
    if not {"inputs", "written", "filtered", "rejected"} <= set(counts):
        return
    parts = counts["written"] + sum(counts["filtered"].values()) + sum(counts["rejected"].values())
    if counts["inputs"] != parts:
        yield Fault("manifest.json", f"inputs {counts['inputs']} are not written + filtered + rejected = {parts}")


def _integers(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    chunks: Sequence[Any] = table.column(column).chunks
    return np.concatenate([np.empty(0, np.int64), *(buffer_view(chunk).astype(np.int64) for chunk in chunks)])
