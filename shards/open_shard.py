"""One packed shard, mapped: views of its columns, and the checks of what is read from it.

What is not ids is a hundredth of a file: it is compared with the manifest's ``rest_crc32`` when the file is opened. Ids
are checked block by block, when they are first read, so that the first batch of a dataset does not wait for gigabytes of
checksums. Together these are all bytes of the file: a flipped one is noticed before anything is learnt from it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import ChecksumMismatch, DatasetError
from shards.packed import Int32s, ShardHeader, map_file, packed_schema, read_header, rest_checksum
from shards.vocabulary import TokenIds

_REMEDY = "copy it again or pack it again"
# What pyarrow and its caller say of a file whose metadata is damaged: columns missing, of other types, of absurd lengths.
_UNREADABLE = (
    *(OSError, MemoryError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError),
    pa.ArrowException,
)


@dataclass(slots=True, eq=False)
class Unchecked:
    """Which blocks of a file's ids this process has not compared with their checksums; shared by all who opened it.

    Attributes:
        blocks: (blocks,).
        count: how many of them are.
    """

    blocks: npt.NDArray[np.bool_]
    count: int

    def done(self, block: int) -> None:
        """A block was compared and is whole."""
        self.blocks[block] = False
        self.count -= 1


_KNOWN: dict[tuple[str, int, int, int, int], Unchecked] = {}
"""By path, inode, size, time of change and checksum of the rest; a byte a block."""


@dataclass(slots=True, eq=False)
class OpenShard:
    """A mapped shard: every array is a view of the file.

    Attributes:
        token_ids: (rows, sequence_length) uint16 or uint32; not checked by itself, see :meth:`ids`.
        num_tokens: (rows,).
        start_offsets, starts: row r's document starts are ``starts[start_offsets[r]:start_offsets[r + 1]]``.
        span_offsets, spans: likewise its loss spans; ``spans`` is (spans, 2).
    """

    path: Path
    header: ShardHeader
    token_ids: TokenIds
    num_tokens: Int32s
    start_offsets: Int32s
    starts: Int32s
    span_offsets: Int32s
    spans: Int32s
    unchecked: Unchecked

    def ids(self, row: int) -> TokenIds:
        """(sequence_length,) view of a row; its block is checked when it is the first of it.

        Raises:
            ChecksumMismatch: naming the rows of the block.
        """
        if self.unchecked.count:
            self.check(row // self.header.block_rows)
        return self.token_ids[row]

    def check(self, block: int) -> None:
        """Compare a block of ids with its checksum, unless that was done; errors of :meth:`ids`."""
        if not self.unchecked.blocks[block]:
            return
        if not self.is_whole(block):
            rows = self.rows_of(block)
            raise ChecksumMismatch(
                f"{self.path}: damaged rows {rows.start}..{rows.stop - 1} (block {block}): expected CRC-32 "
                f"{int(self.header.block_crc32[block]):08x}, found another; {_REMEDY}"
            )
        self.unchecked.done(block)

    def check_all(self) -> None:
        """Check every block that was not yet; errors of :meth:`ids`."""
        for block in np.flatnonzero(self.unchecked.blocks).tolist():
            self.check(block)

    def trust(self) -> None:
        """Check no block any more: the whole file has been compared with its checksum, or nobody wants it to be."""
        self.unchecked = Unchecked(np.zeros(len(self.unchecked.blocks), np.bool_), 0)

    def is_whole(self, block: int) -> bool:
        """Whether the ids of a block are those that were written."""
        rows = self.rows_of(block)
        return zlib.crc32(self.token_ids[rows.start : rows.stop].data) == self.header.block_crc32[block]

    def rows_of(self, block: int) -> range:
        """The rows of a block."""
        size = self.header.block_rows
        return range(block * size, min(len(self.token_ids), (block + 1) * size))

    def document_starts(self, row: int) -> Int32s:
        """(documents,) where each document of a row begins; the first is 0."""
        return self.starts[self.start_offsets[row] : self.start_offsets[row + 1]]

    def loss_spans(self, row: int) -> Int32s:
        """(spans, 2) half-open ranges of a row that are trained on."""
        return self.spans[self.span_offsets[row] : self.span_offsets[row + 1]]


def open_shard(path: Path, *, rest_crc32: int | None = None) -> OpenShard:
    """Map one shard.

    Args:
        rest_crc32: what :func:`shards.packed.rest_checksum` must be; None compares nothing. A process compares a file's
            rest, and each of its blocks, once, however often it is opened.

    Raises:
        ChecksumMismatch: if what is not ids is damaged.
        DatasetError: if it is no packed shard, cut, or of an unknown format version.
    """
    try:
        if rest_crc32 is None:
            return _map(path, None)
        found = path.stat()
        key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns, rest_crc32)
        shard = _map(path, None if key in _KNOWN else rest_crc32)
        shard.unchecked = _KNOWN.setdefault(key, shard.unchecked)
        return shard
    except _UNREADABLE as error:
        kind = DatasetError if rest_crc32 is None else ChecksumMismatch
        raise kind(f"{path}: expected a packed shard, found {error}; {_REMEDY}") from error


def rest_is_whole(path: Path, rest_crc32: int) -> bool:
    """Whether what is not ids is what was written; the block checksums are of it, so without it they prove nothing.

    Raises:
        DatasetError: if it is no packed shard.
    """
    try:
        whole, file = map_file(path)
        return rest_checksum(whole, file.get_batch(0).column(0)) == rest_crc32
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: expected a packed shard, found {error}; {_REMEDY}") from error


def _map(path: Path, rest_crc32: int | None) -> OpenShard:
    whole, file = map_file(path)
    batch = file.get_batch(0) if file.num_record_batches == 1 else None
    if rest_crc32 is not None:
        found = rest_checksum(whole, batch.column(0)) if batch is not None else None
        if found != rest_crc32:
            raise ChecksumMismatch(
                f"{path}: its header, numbers of tokens, document starts or loss spans are damaged: expected CRC-32 "
                f"{rest_crc32:08x} of all that is not ids, found another; {_REMEDY}"
            )
    header = read_header(file.schema, path)
    if batch is None:
        raise DatasetError(f"{path}: expected one record batch, found {file.num_record_batches}; pack it again")
    dtype = np.dtype(batch.schema.field(0).type.value_type.to_pandas_dtype())
    if not file.schema.equals(packed_schema(header.sequence_length, dtype)):
        raise DatasetError(f"{path}: expected the columns of FORMAT.md, found {file.schema.names}; {_REMEDY}")
    # Lengths of buffers against numbers of rows; what is in the buffers is for the checksums.
    batch.validate()
    ids, num_tokens, starts, spans = batch.columns
    token_ids = buffer_view(ids.values).reshape(batch.num_rows, header.sequence_length)
    blocks = len(range(0, batch.num_rows, header.block_rows))
    if header.block_crc32.shape != (blocks,):
        raise DatasetError(
            f"{path}: expected {blocks} checksums for {batch.num_rows} rows, found {len(header.block_crc32)}; {_REMEDY}"
        )
    return OpenShard(
        path,
        header,
        token_ids,
        buffer_view(num_tokens),
        buffer_view(starts.offsets),
        buffer_view(starts.values),
        buffer_view(spans.offsets),
        buffer_view(spans.values.values).reshape(-1, 2),
        Unchecked(np.ones(blocks, np.bool_), blocks),
    )


def buffer_view(array: Any) -> npt.NDArray[Any]:
    """A primitive Arrow array as numpy, straight from its buffer: ``to_numpy`` would import pandas (1.5 s)."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1] or b"", dtype, count=len(array), offset=array.offset * dtype.itemsize)
