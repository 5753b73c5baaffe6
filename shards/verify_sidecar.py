"""The sidecar of a packed shard: its bytes, and that its rows are the documents of the shard, all of them and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.faults import Fault
from shards.manifest import Manifest, ShardEntry
from shards.open_shard import OpenShard, buffer_view
from shards.packed import SIDECAR_SCHEMA, sidecar_path
from shards.verify_files import NOT_AS_WRITTEN, UNREADABLE, without_path
from shards.writer import file_sha256

Origins = dict[tuple[str, str], int]
_COLUMNS = ["row", "position", "dataset", "direction", "start", "stop"]


def look_at_sidecar(shard: OpenShard, entry: ShardEntry, manifest: Manifest) -> tuple[Origins, tuple[Fault, ...]]:
    """Ids by (dataset, direction), and the faults.

    The sha256 is that of the manifest's ``extra["sidecars"]``; a dataset that names none has only its content looked at.
    """
    path = sidecar_path(shard.path)
    name = str(Path(entry.path).with_name(path.name))
    if not path.is_file():
        return {}, (Fault(name, "the sidecar with the sample ids is missing"),)
    checksums = manifest.extra.get("sidecars", {})
    if checksums and name not in checksums:
        return {}, (Fault(name, "the manifest does not name its checksum; pack it again"),)
    if checksums and file_sha256(path) != checksums[name]:
        return {}, (Fault(name, NOT_AS_WRITTEN),)
    try:
        # One file, not a folder of them: its name may well hold a "key=value".
        if not pq.read_schema(path).equals(SIDECAR_SCHEMA):
            return {}, (Fault(name, "its columns are not those of FORMAT.md"),)
        with pq.ParquetFile(path, read_dictionary=["dataset", "direction"]) as file:
            table = file.read(columns=_COLUMNS)
        return _origins(table), tuple(_document_faults(table, shard, name))
    except UNREADABLE as error:
        return {}, (Fault(name, f"cannot be read: {without_path(error, path)}"),)


def _document_faults(table: pa.Table, shard: OpenShard, name: str) -> Iterator[Fault]:
    rows, positions, starts, stops = (_integers(table, column) for column in ("row", "position", "start", "stop"))
    counts = np.diff(shard.start_offsets)
    document_rows = np.repeat(np.arange(len(shard.token_ids)), counts)
    if not (np.array_equal(rows, document_rows) and np.array_equal(starts, shard.starts)):
        yield Fault(name, "its documents are not at the shard's document starts", _uncovered(rows, starts, shard))
        return
    numbers = np.arange(len(rows)) - np.repeat(shard.start_offsets[:-1], counts)
    if (positions != numbers).any():
        yield Fault(
            name, "its positions do not count the documents of a row", tuple(rows[positions != numbers].tolist())
        )
    # A document ends where the next one begins, the last one where the row's ids do.
    ends = np.append(shard.starts[1:], 0)
    last = shard.start_offsets[1:] - 1
    ends[last[counts > 0]] = shard.num_tokens[counts > 0]
    wrong = np.unique(rows[stops != ends])
    if wrong.size:
        yield Fault(name, "its documents do not add up to num_tokens", tuple(wrong.tolist()))


def _uncovered(rows: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], shard: OpenShard) -> tuple[int, ...]:
    """Rows whose documents begin elsewhere than in the shard; rows that the shard does not have among them."""
    length = shard.token_ids.shape[1]
    document_rows = np.repeat(np.arange(len(shard.token_ids)), np.diff(shard.start_offsets))
    found, expected = rows * length + starts, document_rows * length + shard.starts
    return tuple(np.unique(np.setxor1d(found, expected) // length).tolist())


def _origins(table: pa.Table) -> Origins:
    lengths = _integers(table, "stop") - _integers(table, "start")
    (datasets, dataset), (directions, direction) = _encoded(table["dataset"]), _encoded(table["direction"])
    sums = np.bincount(
        dataset * len(directions) + direction, weights=lengths, minlength=len(datasets) * len(directions)
    )
    pairs = [(name, way) for name in datasets for way in directions]
    return {pair: int(count) for pair, count in zip(pairs, sums.tolist(), strict=True) if count}


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Different strings, and which of them each is."""
    encoded = column.unify_dictionaries().combine_chunks()
    return encoded.dictionary.to_pylist(), buffer_view(encoded.indices).astype(np.int64)


def _integers(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    chunks: list[Any] = table.column(column).chunks
    return np.concatenate([np.empty(0, np.int64), *(buffer_view(chunk).astype(np.int64) for chunk in chunks)])
