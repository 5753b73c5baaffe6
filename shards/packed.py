"""Packed shards: rows of token ids, ready to train on (stage B's output; FORMAT.md gives the bytes).

A shard is an Arrow IPC file, uncompressed, with ONE record batch, so that ``token_ids`` is a single aligned buffer: one
zero-copy ``(rows, sequence_length)`` view of the memory-mapped file. Which sample every stretch of a row came from lies
beside it in a Parquet file, out of the way of the trainer.

The bytes depend on the rows, the vocabulary and the pyarrow version alone. The schema's metadata holds a CRC-32 per
block of rows, and the manifest one of everything beside the ids: the manifest's sha256 says *whether* a shard is damaged,
the blocks say *which rows*, and a reader checks what it reads without reading the whole file first.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import DatasetError
from shards.manifest import PackedEntry
from shards.vocabulary import TokenIds, Vocabulary
from shards.writer import TEMPORARY_SUFFIX, commit_file, commit_table, file_sha256

FORMAT_VERSION = 1
BLOCK_ROWS = 16
"""Rows of one checksum. A row that is read costs the check of its block once: 144 KB, 0.07 ms. More rows would cost more
than they save, fewer a longer header (11 characters a block)."""
METADATA_KEY = b"anygpt.packed"
SIDECAR_SUFFIX = ".samples.parquet"

Int32s = npt.NDArray[np.int32]
Checksums = npt.NDArray[np.uint32]

SIDECAR_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("direction", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("stop", pa.int32(), nullable=False),
        pa.field("offset", pa.int32(), nullable=False),
    ]
)

_SIDECAR_ENCODINGS = {
    "sample_id": "DELTA_BYTE_ARRAY",
    **dict.fromkeys(("row", "position", "draw", "start", "stop", "offset"), "DELTA_BINARY_PACKED"),
}
# Ids that differ in their last digits, numbers that rise: a third smaller than with dictionaries, and faster to write.


@dataclass(frozen=True, slots=True)
class Placement:
    """A document, or a piece of one, in a row: ids ``[start, stop)`` are the document's from ``offset`` on.

    A later piece of a dialogue has its opening in front again; ``offset`` is then that of the first id that is new.
    """

    sample_id: str
    dataset: str
    draw: int
    direction: str
    start: int
    stop: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row before it is written.

    Attributes:
        token_ids: (sequence_length,), padding included.
        num_tokens: ids that are no padding; they come first.
        document_starts: ascending; the first is 0.
        loss_spans: half-open, ascending, disjoint and not touching, inside ``[0, num_tokens)``.
        placements: in the order of the row.
    """

    token_ids: TokenIds
    num_tokens: int
    document_starts: tuple[int, ...]
    loss_spans: tuple[tuple[int, int], ...]
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard says about itself in its schema's metadata.

    Attributes:
        block_crc32: (blocks,) uint32, of every ``block_rows`` rows of ids.
    """

    format_version: int
    vocabulary: str
    sequence_length: int
    pad_id: int
    block_rows: int
    block_crc32: Checksums


def packed_schema(sequence_length: int, dtype: np.dtype[Any], metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    """Columns of a packed shard; ``dtype`` is uint16 or uint32."""
    ids = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    whole = pa.field("item", pa.int32(), nullable=False)
    span = pa.field("item", pa.list_(whole, 2), nullable=False)
    return pa.schema(
        [
            pa.field("token_ids", pa.list_(ids, sequence_length), nullable=False),
            pa.field("num_tokens", pa.int32(), nullable=False),
            pa.field("document_starts", pa.list_(whole), nullable=False),
            pa.field("loss_spans", pa.list_(span), nullable=False),
        ],
        metadata=metadata,
    )


def write_packed_shard(
    path: Path, rows: Iterable[PackedRow], *, vocabulary: Vocabulary, sequence_length: int
) -> PackedEntry:
    """Commit the sidecar, then the shard, atomically: a shard under its final name is whole and has its sidecar.

    Args:
        path: ends in ``.arrow``; the sidecar gets the same stem and ``.samples.parquet``.

    Returns:
        The manifest's entry, its path relative to ``path``'s folder.

    Raises:
        DatasetError: if a row breaks the format (length, order, ranges, ids outside the vocabulary).
    """
    kept = list(rows)
    for number, row in enumerate(kept):
        _check_row(row, number, path, vocabulary, sequence_length)
    token_ids = np.full((len(kept), sequence_length), vocabulary.pad_id, vocabulary.dtype)
    for number, row in enumerate(kept):
        token_ids[number] = row.token_ids
    num_tokens = np.array([row.num_tokens for row in kept], np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_table(sidecar_path(path), _sidecar_table(kept), encodings=_SIDECAR_ENCODINGS)
    _commit_batch(path, _record_batch(token_ids, num_tokens, kept, vocabulary))
    tokens = count_tokens(token_ids, num_tokens, vocabulary)
    whole, file = map_file(path)
    rest = rest_checksum(whole, file.get_batch(0).column(0))
    return PackedEntry(path.name, len(kept), path.stat().st_size, file_sha256(path), tokens, rest)


def sidecar_path(shard: Path) -> Path:
    """Where the sample ids of a shard's rows are."""
    return shard.with_name(shard.stem + SIDECAR_SUFFIX)


def count_tokens(token_ids: TokenIds, num_tokens: Int32s, vocabulary: Vocabulary) -> dict[str, int]:
    """Ids that are no padding, by modality; a medium's markers count as that medium.

    Args:
        token_ids: (rows, sequence_length).
        num_tokens: (rows,).
    """
    names = vocabulary.modality_names()
    index = vocabulary.modality_index()
    counts = np.zeros(len(names), np.int64)
    for ids, used in zip(token_ids, num_tokens.tolist(), strict=True):
        counts += np.bincount(index[ids[:used]], minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def read_header(schema: pa.Schema, path: Path) -> ShardHeader:
    """What the shard at ``path`` says about itself.

    Raises:
        DatasetError: if it is no packed shard, or of a format version this code does not know.
    """
    metadata = (schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise DatasetError(
            f"{path}: expected a packed shard, found an Arrow file without {METADATA_KEY.decode()!r} metadata"
        )
    facts: dict[str, Any] = json.loads(metadata)
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: expected packed format version {FORMAT_VERSION}, found {version}; "
            "read it with the release that wrote it, or pack again"
        )
    facts["block_crc32"] = np.array(facts["block_crc32"], np.uint32)
    return ShardHeader(**facts)


def block_checksums(token_ids: TokenIds, block_rows: int = BLOCK_ROWS) -> Checksums:
    """(blocks,) CRC-32 of every ``block_rows`` rows of ids, little-endian as stored."""
    starts = range(0, len(token_ids), block_rows)
    return np.array([zlib.crc32(token_ids[start : start + block_rows].data) for start in starts], np.uint32)


def map_file(path: Path) -> tuple[pa.Buffer, Any]:
    """A shard's bytes, mapped, and the Arrow file reader over them.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read, or is no Arrow file.
    """
    whole = pa.memory_map(str(path)).read_buffer()
    return whole, pa.ipc.open_file(pa.BufferReader(whole))


def rest_checksum(whole: pa.Buffer, token_ids: pa.Array) -> int:
    """CRC-32 of a file without its ids: what comes before them, then what comes after.

    Args:
        whole: the mapped file.
        token_ids: the column of ids, a view of it.
    """
    ids = token_ids.values.buffers()[1]
    start = ids.address - whole.address
    size = len(token_ids) * token_ids.type.list_size * token_ids.type.value_type.bit_width // 8
    data = memoryview(whole)
    return zlib.crc32(data[start + size :], zlib.crc32(data[:start]))


def header_metadata(vocabulary: Vocabulary, sequence_length: int, block_crc32: Checksums) -> dict[bytes, bytes]:
    """Metadata of the schema of a packed shard, as :func:`read_header` reads it."""
    header = {
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary.fingerprint,
        "sequence_length": sequence_length,
        "pad_id": vocabulary.pad_id,
        "block_rows": BLOCK_ROWS,
        "block_crc32": block_crc32.tolist(),
    }
    return {METADATA_KEY: json.dumps(header, separators=(",", ":")).encode("ascii")}


def _check_row(row: PackedRow, number: int, path: Path, vocabulary: Vocabulary, sequence_length: int) -> None:
    def fail(what: str) -> DatasetError:
        return DatasetError(f"{path}: row {number}: {what}; this is a fault of whatever packed it, nothing was written")

    if row.token_ids.shape != (sequence_length,):
        raise fail(f"expected {sequence_length} ids, found shape {row.token_ids.shape}")
    if not 0 < row.num_tokens <= sequence_length:
        raise fail(f"expected num_tokens in [1, {sequence_length}], found {row.num_tokens}")
    if int(row.token_ids.min()) < 0 or int(row.token_ids.max()) >= vocabulary.size:
        raise fail(f"expected ids in [0, {vocabulary.size}), found {row.token_ids.min()}..{row.token_ids.max()}")
    if (row.token_ids[row.num_tokens :] != vocabulary.pad_id).any():
        raise fail(f"expected padding ({vocabulary.pad_id}) from {row.num_tokens} on, found other ids")
    starts = row.document_starts
    if not starts or starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= row.num_tokens:
        raise fail(f"expected ascending document starts from 0 below {row.num_tokens}, found {starts}")
    edges = [edge for span in row.loss_spans for edge in span]
    if edges and (edges != sorted(set(edges)) or edges[0] < 0 or edges[-1] > row.num_tokens):
        raise fail(f"expected ascending, separate loss spans within [0, {row.num_tokens}], found {row.loss_spans}")


def _record_batch(
    token_ids: TokenIds, num_tokens: Int32s, rows: Sequence[PackedRow], vocabulary: Vocabulary
) -> pa.RecordBatch:
    starts = [row.document_starts for row in rows]
    spans = [row.loss_spans for row in rows]
    flat_starts = pa.array(np.array([start for row in starts for start in row], np.int32))
    flat_spans = pa.array(np.array([edge for row in spans for span in row for edge in span], np.int32))
    sequence_length = token_ids.shape[1]
    metadata = header_metadata(vocabulary, sequence_length, block_checksums(token_ids))
    schema = packed_schema(sequence_length, token_ids.dtype, metadata)
    types = {field.name: field.type for field in schema}
    pairs = pa.FixedSizeListArray.from_arrays(flat_spans, type=types["loss_spans"].value_type)
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(token_ids.reshape(-1)), type=types["token_ids"]),
        pa.array(num_tokens),
        pa.ListArray.from_arrays(_offsets(starts), flat_starts, type=types["document_starts"]),
        pa.ListArray.from_arrays(_offsets(spans), pairs, type=types["loss_spans"]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _offsets(lists: Sequence[Sequence[Any]]) -> pa.Array:
    return pa.array(np.cumsum([0, *(len(items) for items in lists)], dtype=np.int32))


def _commit_batch(path: Path, batch: pa.RecordBatch) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as file:
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    commit_file(temporary, path)


def _sidecar_table(rows: Sequence[PackedRow]) -> pa.Table:
    records = [
        {"row": number, "position": position, **{name: getattr(placement, name) for name in SIDECAR_SCHEMA.names[2:]}}
        for number, row in enumerate(rows)
        for position, placement in enumerate(row.placements)
    ]
    return pa.Table.from_pylist(records, schema=SIDECAR_SCHEMA)
