"""Mosaic Data Shards: ``index.json`` and ``shard.NNNNN.mds``, as MosaicML's Streaming reads and writes them.

Source: the library's page "Dataset Format", version 2. ``index.json`` is ``{"version": 2, "shards": [...]}``; a shard's
entry has its columns, the size and the hashes of its file, and the number of samples. All numbers are little-endian:

    u32 n           samples
    u32[n + 1]      where each sample begins in the file, and where the last one ends
    JSON            the columns again, for people
    samples         u32 size of every column without a fixed one, then the columns' bytes, in the order of their names

Written columns: ``tokens`` (``ndarray:uint16:L`` or ``uint32``: one row, padding included, so that samples of equal shape
are collated as they are), ``num_tokens`` (``uint32``), ``document_starts`` (``ndarray:int32``) and ``loss_spans``
(``bytes``: int32 pairs, because an ``ndarray`` may not be empty).

Read is any integer ``ndarray`` column, or ``bytes`` of int64 as llm-foundry writes them; shards may be compressed with zstd,
gzip or bzip2. The other three columns are used where they are as above. Hashes that Python has are checked.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.convert_rows import ForeignRow, as_spans, shard_rows
from shards.convert_sidecar import Sidecar
from shards.errors import ChecksumMismatch, DatasetError
from shards.packed import PackedRow
from shards.reader import PackedDataset
from shards.vocabulary import TokenIds
from shards.writer import commit_bytes, commit_pieces, file_sha256

INDEX_NAME = "index.json"
VERSION = 2
SIZE_LIMIT = 1 << 26
"""Bytes of a shard at most, the library's own default."""
ID_COLUMNS = ("tokens", "input_ids", "token_ids")
"""Where ids are looked for when no column is named."""

_AGAIN = "copy it again, or make it again with the program that wrote it"
# Numbers of the types of an ndarray that says its own, and of the type its shape is in.
_VALUE_TYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_SHAPE_TYPES = ("u1", "<u2", "<u4", "<u8")
_NAMED_TYPES = {np.dtype(name).name: name for name in _VALUE_TYPES.values()}
_DECOMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(),
    "gz": gzip.decompress,
    "bz2": bz2.decompress,
}


@dataclass(frozen=True, slots=True)
class _Shard:
    """An entry of the index, with the bytes it is about."""

    name: str
    samples: int
    names: Sequence[str]
    encodings: Sequence[str]
    sizes: Sequence[int | None]
    data: npt.NDArray[np.uint8]


def write(folder: Path, dataset: PackedDataset) -> None:
    """Write shards of at most :data:`SIZE_LIMIT` bytes, then the index."""
    ids = f"ndarray:{dataset.vocabulary.dtype.name}:{dataset.sequence_length}"
    columns: dict[str, tuple[str, int | None]] = {
        "document_starts": ("ndarray:int32", None),
        "loss_spans": ("bytes", None),
        "num_tokens": ("uint32", 4),
        "tokens": (ids, dataset.sequence_length * dataset.vocabulary.dtype.itemsize),
    }
    facts = {
        "column_encodings": [encoding for encoding, _ in columns.values()],
        "column_names": list(columns),
        "column_sizes": [size for _, size in columns.values()],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": SIZE_LIMIT,
        "version": VERSION,
    }
    config = json.dumps(facts, sort_keys=True).encode()
    entries: list[dict[str, Any]] = []
    for samples in _grouped(dataset, SIZE_LIMIT - 8 - len(config)):
        path = folder / f"shard.{len(entries):05d}.mds"
        sha256 = commit_pieces(path, _pieces(samples, config))
        raw = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {"sha256": sha256}}
        entries.append(facts | {"raw_data": raw, "samples": len(samples), "zip_data": None})
    commit_bytes(folder / INDEX_NAME, json.dumps({"shards": entries, "version": VERSION}, sort_keys=True).encode())


def inputs(source: Path) -> list[Path]:
    """The index and the shards it names, in its order.

    Raises:
        DatasetError: there is no index, or no file that it names.
    """
    files = [source / INDEX_NAME, *(_place(source, entry)[0] for entry in _read_index(source))]
    for path in files:
        if not path.is_file():
            raise DatasetError(f"{path}: named in {INDEX_NAME} and not there; {_AGAIN}")
    return files


def read(source: Path, *, column: str, sidecar: Sidecar | None) -> Iterator[ForeignRow]:
    """Samples in the order of the index; rows where they say their documents.

    Args:
        column: that holds the ids; empty for the first of :data:`ID_COLUMNS` that is there.

    Raises:
        DatasetError: a file is not what the format or the index says.
        ChecksumMismatch: its bytes are not those that were written.
    """
    for entry in _read_index(source):
        shard = _open(source, entry)
        name = _id_column(shard, column)
        for number, sample in enumerate(_samples(shard)):
            yield _to_row(f"{shard.name}/{number}", shard, sample, name)


def _grouped(dataset: PackedDataset, limit: int) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    used = 0
    for number in range(dataset.num_shards):
        for row in shard_rows(dataset.checked_shard(number)):
            sample = _encode(row)
            if group and used + 4 + len(sample) > limit:
                yield group
                group, used = [], 0
            group.append(sample)
            used += 4 + len(sample)
    if group:
        yield group


def _encode(row: PackedRow) -> bytes:
    starts = np.array(row.document_starts, "<i4")
    # One axis, whose length is a number of the smallest type that holds it.
    width = next(n for n, name in enumerate(_SHAPE_TYPES) if len(starts) <= np.iinfo(name).max)
    shape = bytes([1 << 2 | width]) + len(starts).to_bytes(1 << width, "little")
    spans = np.array(row.loss_spans, "<i4").tobytes()
    sizes = np.array([len(shape) + starts.nbytes, len(spans)], "<u4").tobytes()
    ids = row.token_ids.astype(row.token_ids.dtype.newbyteorder("<")).tobytes()
    return b"".join([sizes, shape, starts.tobytes(), spans, row.num_tokens.to_bytes(4, "little"), ids])


def _pieces(samples: Sequence[bytes], config: bytes) -> Iterator[bytes]:
    head = 4 + 4 * (len(samples) + 1) + len(config)
    offsets = head + np.cumsum([0, *(len(sample) for sample in samples)])
    yield len(samples).to_bytes(4, "little") + offsets.astype("<u4").tobytes() + config
    yield from samples


def _read_index(source: Path) -> list[dict[str, Any]]:
    path = source / INDEX_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, entries = data["version"], list(data["shards"])
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: expected the index of an MDS dataset, found none; give its folder") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: expected the index of an MDS dataset, found {error!r}; {_AGAIN}") from error
    if version != VERSION:
        raise DatasetError(f"{path}: expected version {VERSION}, found {version}; {_AGAIN}")
    for number, entry in enumerate(entries):
        found = (entry.get("format"), entry.get("version")) if isinstance(entry, dict) else (entry, None)
        if found != ("mds", VERSION):
            raise DatasetError(f"{path}: shard {number}: expected format 'mds' of version {VERSION}, found {found}")
    return entries


def _place(source: Path, entry: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any], bool]:
    """The file of a shard as it lies there, what the index says of that file, and whether it is compressed."""
    raw, zipped = _facts(source, entry.get("raw_data")), entry.get("zip_data")
    if zipped is None or (source / raw["basename"]).is_file():
        return source / raw["basename"], raw, False
    return source / _facts(source, zipped)["basename"], zipped, True


def _facts(source: Path, facts: Any) -> Mapping[str, Any]:
    name = facts.get("basename") if isinstance(facts, dict) else None
    path = PurePosixPath(str(name))
    if not name or path.is_absolute() or ".." in path.parts:
        raise DatasetError(
            f"{source / INDEX_NAME}: expected the name of a file below its folder, found {name!r}; {_AGAIN}"
        )
    return facts


def _open(source: Path, entry: Mapping[str, Any]) -> _Shard:
    path, facts, zipped = _place(source, entry)
    if not path.is_file():
        raise DatasetError(f"{path}: named in {INDEX_NAME} and not there; {_AGAIN}")
    try:
        _check_file(path, facts)
        data = _load(path, str(entry.get("compression")) if zipped else "")
        names, encodings = list(entry["column_names"]), list(entry["column_encodings"])
        sizes: list[int | None] = list(entry["column_sizes"])
        raw_bytes, samples = int(entry["raw_data"]["bytes"]), int(entry["samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{source / INDEX_NAME}: {path.name}: expected a whole entry, found {error!r}") from error
    if len(data) != raw_bytes:
        raise DatasetError(f"{path}: expected {raw_bytes:,} bytes, as its index says, found {len(data):,}; {_AGAIN}")
    if not len(names) == len(encodings) == len(sizes):
        raise DatasetError(f"{source / INDEX_NAME}: {path.name}: expected a name, encoding and size of every column")
    return _Shard(str(path.relative_to(source)), samples, names, encodings, sizes, data)


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise DatasetError(f"{path}: expected {facts['bytes']:,} bytes, as its index says, found {size:,}; {_AGAIN}")
    for name, expected in facts.get("hashes", {}).items():
        if name not in hashlib.algorithms_guaranteed:
            continue
        with path.open("rb") as file:
            found = file_sha256(path) if name == "sha256" else hashlib.file_digest(file, name).hexdigest()
        if found != expected:
            raise ChecksumMismatch(f"{path}: expected {name} {expected[:16]}..., found {found[:16]}...; {_AGAIN}")


def _load(path: Path, compression: str) -> npt.NDArray[np.uint8]:
    if not compression:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    kind = compression.partition(":")[0]
    if kind not in _DECOMPRESS:
        raise DatasetError(
            f"{path}: expected no compression or one of {sorted(_DECOMPRESS)}, found {kind!r}; write it again without"
        )
    try:
        return np.frombuffer(_DECOMPRESS[kind](path.read_bytes()), np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path}: expected {kind} data, found {error}; {_AGAIN}") from error


def _samples(shard: _Shard) -> Iterator[dict[str, bytes]]:
    """Every sample's columns as bytes."""
    head = shard.data[: 4 * (shard.samples + 2)]
    numbers = np.frombuffer(head.tobytes()[: len(head) // 4 * 4], "<u4").astype(np.int64)
    if len(numbers) != shard.samples + 2 or numbers[0] != shard.samples:
        raise DatasetError(
            f"{shard.name}: expected {shard.samples} samples, as its index says, found "
            f"{numbers[0] if len(numbers) else 0} in a file of {len(shard.data):,} bytes; {_AGAIN}"
        )
    offsets = numbers[1:]
    if (np.diff(offsets) < 0).any() or offsets[0] < head.nbytes or offsets[-1] != len(shard.data):
        raise DatasetError(
            f"{shard.name}: expected samples one after another up to byte {len(shard.data):,}, found them up to "
            f"{offsets[-1]:,}; {_AGAIN}"
        )
    for number, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        yield _columns(shard, number, shard.data[begin:end].tobytes())


def _columns(shard: _Shard, number: int, data: bytes) -> dict[str, bytes]:
    free = sum(size is None for size in shard.sizes)
    told = iter(np.frombuffer(data[: min(4 * free, len(data) // 4 * 4)], "<u4").tolist())
    sizes = [next(told, 0) if size is None else size for size in shard.sizes]
    stops = (4 * free + np.cumsum([0, *sizes])).tolist()
    if stops[-1] != len(data):
        raise DatasetError(
            f"{shard.name}: sample {number}: expected columns of {stops[-1]:,} bytes, found {len(data):,}; {_AGAIN}"
        )
    return {name: data[stops[n] : stops[n + 1]] for n, name in enumerate(shard.names)}


def _id_column(shard: _Shard, wanted: str) -> str:
    candidates = (wanted,) if wanted else ID_COLUMNS
    for name in candidates:
        if name in shard.names:
            return name
    raise DatasetError(
        f"{shard.name}: expected a column {' or '.join(candidates)} with token ids, found {', '.join(shard.names)}; "
        "name it with --column"
    )


def _to_row(name: str, shard: _Shard, sample: Mapping[str, bytes], column: str) -> ForeignRow:
    encodings = dict(zip(shard.names, shard.encodings, strict=True))
    try:
        ids = _array(encodings[column], sample[column])
        if {"document_starts", "loss_spans", "num_tokens"} <= set(sample):
            used = int.from_bytes(sample["num_tokens"], "little")
            starts = _array(encodings["document_starts"], sample["document_starts"]).tolist()
            spans = np.frombuffer(sample["loss_spans"], "<i4").reshape(-1, 2).tolist()
            return ForeignRow(name, ids[:used], tuple(starts), as_spans(spans), len(ids))
    except (ValueError, IndexError, KeyError) as error:
        raise DatasetError(
            f"{name}: expected token ids in column {column} ({encodings[column]}), found {error}; name the column with "
            "--column"
        ) from error
    return ForeignRow(name, ids, length=len(ids))


def _array(encoding: str, data: bytes) -> TokenIds:
    """One axis of integers; ``ValueError`` and its like if the bytes or the encoding say otherwise."""
    kind, _, rest = encoding.partition(":")
    if encoding == "bytes":
        return np.frombuffer(data, "<i8")
    if kind != "ndarray":
        raise ValueError(f"an encoding {encoding!r}, which holds no array of integers")
    dtype_name, _, shape = rest.partition(":")
    at = 0
    if not dtype_name:
        dtype, at = _VALUE_TYPES[data[0]], 1
    else:
        dtype = _NAMED_TYPES[dtype_name]
    if not shape:
        axes, width = data[at] >> 2, data[at] % 4
        at += 1
        lengths = np.frombuffer(data[at : at + (axes << width)], _SHAPE_TYPES[width])
        at += axes << width
    else:
        lengths = np.array([int(axis) for axis in shape.split(",")])
    return np.frombuffer(data[at:], dtype).reshape(lengths.astype(np.int64).tolist()).reshape(-1)
