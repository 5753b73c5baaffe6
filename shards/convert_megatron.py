"""Megatron-LM's indexed dataset: documents one after another in ``PREFIX.bin``, where they lie in ``PREFIX.idx``.

Source: the layout that Megatron-LM, NeMo, GPT-NeoX and Nanotron read (``MMapIndexedDataset``, ``IndexedDataset``). All
numbers are little-endian. The index:

    9 bytes     ``MMIDIDX`` and two zero bytes
    u64         version, 1
    u8          type of the ids: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16 (6 and 7 are floats)
    u64 n, u64 m    sequences; entries of the document index
    i32[n]      ids in each sequence
    i64[n]      where it begins in the ``.bin``, in bytes
    i64[m]      first sequence of each document, and n at the end: m is one more than there are documents
    i8[n]       modes, in multimodal datasets only; they are not read

Written is one document per document of a row, without padding, one sequence each, as Megatron's ``preprocess_data.py``
does without ``--split-sentences``. Ids of 32 bits become int32: the format has no uint32. Which documents share a row, and
the loss spans, are in the sidecar. Read are documents of any number of sequences.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shards.convert_rows import ForeignRow, as_spans
from shards.convert_sidecar import Sidecar, write_rows
from shards.errors import DatasetError
from shards.open_shard import OpenShard
from shards.reader import PackedDataset
from shards.vocabulary import TokenIds
from shards.writer import commit_pieces

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
PREFIX = "tokens"
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

_HEADER = struct.Struct("<9sQBQQ")
CHUNK = 1 << 12
"""Sequences or documents looked at at once."""


@dataclass(frozen=True, slots=True)
class _Index:
    """A mapped ``.idx`` with its mapped ``.bin``."""

    name: str
    ids: TokenIds
    lengths: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]


def write(folder: Path, dataset: PackedDataset) -> None:
    """Write ``tokens.bin`` and ``tokens.idx``, the index last, with the rows in the sidecar."""
    wide = dataset.vocabulary.dtype.itemsize > 2
    dtype = np.dtype("<i4" if wide else "<u2")
    spool = folder / "lengths"
    # Lengths wait on the disk: a billion of them would be 4 GB.
    with spool.open("w+b") as lengths:
        commit_pieces(folder / f"{PREFIX}.bin", _documents(folder, dataset, dtype, lengths))
        commit_pieces(folder / f"{PREFIX}.idx", _index(lengths, dtype))
    spool.unlink()


def inputs(source: Path) -> list[Path]:
    """The ``.idx`` and ``.bin`` files of a folder, of one ``.idx``, or of a prefix, in the order of their names.

    Raises:
        DatasetError: there is no index, or no ``.bin`` beside it.
    """
    prefix = source if source.suffix == ".idx" else source.with_name(source.name + ".idx")
    found = sorted(source.glob("*.idx")) if source.is_dir() else [prefix]
    files = [path for index in found for path in (index, index.with_suffix(".bin"))]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise DatasetError(
            f"{source}: expected PREFIX.idx and PREFIX.bin, found no {missing[0].name if missing else '*.idx'}; "
            "give their folder or their prefix"
        )
    return files


def read(source: Path, *, column: str, sidecar: Sidecar | None) -> Iterator[ForeignRow]:
    """Documents, or rows where the sidecar knows them; the format has one column, so its name is not looked at.

    Raises:
        DatasetError: an index or a ``.bin`` is not what the format says.
    """
    documents = (document for path in inputs(source)[::2] for document in _read_documents(_open(path)))
    return documents if sidecar is None else _rows(documents, sidecar)


def _documents(folder: Path, dataset: PackedDataset, dtype: np.dtype[Any], lengths: BinaryIO) -> Iterator[bytes]:
    for number, entry in enumerate(dataset.manifest.shards):
        shard = dataset.checked_shard(number)
        write_rows(folder, entry, shard)
        lengths.write(_lengths(shard).tobytes())
        for ids, used in zip(shard.token_ids, shard.num_tokens.tolist(), strict=True):
            yield ids[:used].astype(dtype).tobytes()


def _lengths(shard: OpenShard) -> npt.NDArray[np.int32]:
    """Ids of every document of a shard."""
    stops = np.append(shard.starts[1:], 0)
    stops[shard.start_offsets[1:] - 1] = shard.num_tokens
    return (stops - shard.starts).astype("<i4")


def _index(lengths: BinaryIO, dtype: np.dtype[Any]) -> Iterator[bytes]:
    count = lengths.seek(0, 2) // 4
    code = next(code for code, name in DTYPES.items() if np.dtype(name) == dtype)
    yield _HEADER.pack(MAGIC, VERSION, code, count, count + 1)
    yield from (chunk.tobytes() for chunk in _chunks(lengths))
    position = 0
    for chunk in _chunks(lengths):
        ends = position + np.cumsum(chunk, dtype="<i8") * dtype.itemsize
        yield np.concatenate([[position], ends[:-1]]).astype("<i8").tobytes()
        position = int(ends[-1])
    for first in range(0, count + 1, CHUNK):
        yield np.arange(first, min(first + CHUNK, count + 1), dtype="<i8").tobytes()


def _chunks(lengths: BinaryIO) -> Iterator[npt.NDArray[np.int32]]:
    lengths.seek(0)
    while data := lengths.read(CHUNK * 4):
        yield np.frombuffer(data, "<i4")


def _open(path: Path) -> _Index:
    again = "copy it again, or make it again with the program that wrote it"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if head[:9] != MAGIC:
        raise DatasetError(
            f"{path}: expected the magic {MAGIC!r} of a Megatron index, found {head[:9]!r}; give an .idx file"
        )
    if len(head) < _HEADER.size:
        raise DatasetError(f"{path}: expected a header of {_HEADER.size} bytes, found {size}; {again}")
    _, version, code, count, entries = _HEADER.unpack(head)
    if version != VERSION:
        raise DatasetError(f"{path}: expected version {VERSION} of the index, found {version}; {again}")
    if code not in DTYPES:
        raise DatasetError(
            f"{path}: expected ids of an integer type ({sorted(DTYPES)}), found type {code}; is it a token dataset?"
        )
    expected = _HEADER.size + 12 * count + 8 * entries
    if size not in (expected, expected + count):
        raise DatasetError(
            f"{path}: expected {expected:,} bytes for {count:,} sequences and {entries:,} document entries, "
            f"found {size:,}; {again}"
        )
    lengths, pointers, documents = (
        _map(path, dtype, offset, number)
        for dtype, offset, number in (
            ("<i4", _HEADER.size, count),
            ("<i8", _HEADER.size + 4 * count, count),
            ("<i8", _HEADER.size + 12 * count, entries),
        )
    )
    ids_path = path.with_suffix(".bin")
    dtype = np.dtype(DTYPES[code])
    ids = _map(ids_path, DTYPES[code], 0, ids_path.stat().st_size // dtype.itemsize)
    index = _Index(ids_path.name, ids, lengths, pointers, documents)
    _check(path, index)
    return index


def _map(path: Path, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
    """A part of a file as an array that is read when it is touched; the system refuses to map nothing."""
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)


def _check(path: Path, index: _Index) -> None:
    again = "copy it again, or make it again with the program that wrote it"
    item, size = index.ids.dtype.itemsize, path.with_suffix(".bin").stat().st_size
    for first in range(0, len(index.lengths), CHUNK):
        lengths = index.lengths[first : first + CHUNK].astype(np.int64)
        pointers = index.pointers[first : first + CHUNK]
        wrong = np.flatnonzero((lengths < 0) | (pointers < 0) | (pointers % item != 0))
        if wrong.size:
            raise DatasetError(
                f"{path}: sequence {first + int(wrong[0])}: expected a length and a place in whole ids, found "
                f"{lengths[wrong[0]]} ids at byte {pointers[wrong[0]]}; {again}"
            )
        wrong = np.flatnonzero(pointers + lengths * item > size)
        if wrong.size:
            stop = int(pointers[wrong[0]] + lengths[wrong[0]] * item)
            raise DatasetError(
                f"{path.with_suffix('.bin')}: expected at least {stop:,} bytes for sequence {first + int(wrong[0])}, "
                f"found {size:,}; the file is cut: {again}"
            )
    # One entry of the document index more than a chunk, so that neighbours across chunks are compared too.
    parts = [index.documents[first : first + CHUNK + 1] for first in range(0, len(index.documents), CHUNK)]
    ends = (int(index.documents[0]), int(index.documents[-1])) if parts else ()
    if ends != (0, len(index.lengths)) or any((np.diff(part) < 0).any() for part in parts):
        raise DatasetError(
            f"{path}: expected a document index that ascends from 0 to {len(index.lengths)}, found {ends or 'none'} at its "
            f"ends or a step back; {again}"
        )


def _read_documents(index: _Index) -> Iterator[ForeignRow]:
    item = index.ids.dtype.itemsize
    for first in range(0, len(index.documents) - 1, CHUNK):
        edges: list[int] = index.documents[first : first + CHUNK + 1].tolist()
        begins = index.pointers[edges[0] : edges[-1]].tolist()
        lengths = index.lengths[edges[0] : edges[-1]].tolist()
        for number, (begin, end) in enumerate(pairwise(edges), first):
            pieces = [
                index.ids[place // item : place // item + length]
                for place, length in zip(
                    begins[begin - edges[0] : end - edges[0]], lengths[begin - edges[0] : end - edges[0]], strict=True
                )
            ]
            ids = pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, index.ids.dtype)])
            yield ForeignRow(f"{index.name}/{number}", np.asarray(ids))


def _rows(documents: Iterator[ForeignRow], sidecar: Sidecar) -> Iterator[ForeignRow]:
    """Documents put back into the rows they came from."""
    for entry in sidecar.origin.shards:
        for row in sidecar.rows(entry):
            found = [document for _, document in zip(range(row["documents"]), documents, strict=False)]
            if not found:
                return
            starts = np.cumsum([0, *(len(document.token_ids) for document in found)]).tolist()[:-1]
            ids = np.concatenate([document.token_ids for document in found])
            yield ForeignRow(found[0].name, ids, tuple(starts), as_spans(row["loss_spans"]))
    yield from documents
