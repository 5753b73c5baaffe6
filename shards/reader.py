"""Reading packed datasets at memory speed: rows are copied once, from the mapped file into the caller's buffer.

Shards are opened when first touched, so a dataset of ten thousand shards opens as fast as one of ten. Damage is
noticed: what is read is compared with its checksum once per process, by default when it is first read.

Shards of a dataset in an object store are fetched whole, into a cache on the local disk (:mod:`shards.shard_cache`), when
they are first touched or before; their sha256 is compared while they are. Then they are files as others are.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.cache_folder import RemoteShard
from shards.errors import AnyGPTError, ChecksumMismatch, DatasetError, FingerprintMismatch
from shards.manifest import Manifest, PackedEntry, ShardEntry, read_manifest
from shards.open_shard import OpenShard, open_shard
from shards.packed import FORMAT_VERSION, Int32s
from shards.shard_cache import ShardCache
from shards.storage import is_remote, local_only
from shards.vocabulary import TokenIds, Vocabulary
from shards.writer import file_sha256

Verify = Literal["lazy", "open", "off"]
"""When checksums are checked: of a block of rows when it is first read, of all files when the dataset is opened, never.

Shards whose manifest has no ``rest_crc32`` are compared whole when they are first read from. Remote ones are compared whole
when they are fetched, whatever this says, and none is fetched for being opened."""


class PackedDataset:
    """The rows of a packed dataset, numbered over its shards in the manifest's order; made by :func:`open_packed`."""

    def __init__(self, folder: Path, manifest: Manifest, *, verify: Verify, cache: ShardCache | None = None) -> None:
        if manifest.kind != "packed" or manifest.vocabulary is None:
            raise DatasetError(
                f"{folder}: expected packed shards, found a dataset of kind {manifest.kind!r}; pack it first"
            )
        if manifest.format_version != FORMAT_VERSION:
            raise DatasetError(
                f"{folder}: expected format version {FORMAT_VERSION}, found {manifest.format_version}; pack it again"
            )
        self.folder = folder
        self.manifest = manifest
        self.cache = cache if is_remote(folder) else None
        """Where the shards of a remote dataset are kept; None of a local one."""
        self.vocabulary: Vocabulary = manifest.vocabulary
        self.sequence_length = int(manifest.extra["sequence_length"])
        self._verify = verify
        self._fingerprint = self.vocabulary.fingerprint
        self._first_rows = np.cumsum([0, *(shard.num_rows for shard in manifest.shards)], dtype=np.int64)
        self._open: dict[int, OpenShard] = {}
        self._when_dropped: list[weakref.WeakMethod[Callable[[int], None]]] = []
        if verify == "open" and not is_remote(folder):
            for number in range(self.num_shards):
                self.shard(number)

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return int(self._first_rows[-1])

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.manifest.shards)

    def shard(self, number: int) -> OpenShard:
        """The mapped shard, opened when first asked for; its rows are checked by :meth:`OpenShard.ids`."""
        opened = self._open.get(number)
        if opened is None:
            opened = self._open[number] = self._open_shard(number)
        return opened

    def remote_shard(self, number: int) -> RemoteShard:
        """What the cache is asked for."""
        entry = self.manifest.shards[number]
        return RemoteShard(self.folder / entry.path, entry.num_bytes, entry.sha256)

    def when_dropped(self, forget: Callable[[int], None]) -> None:
        """Have a method called with the number of a shard that the cache lets go of; its object is not kept alive."""
        self._when_dropped = [method for method in self._when_dropped if method() is not None]
        self._when_dropped.append(weakref.WeakMethod(forget))

    def checked_shard(self, number: int) -> OpenShard:
        """The mapped shard, every row of it checked."""
        shard = self.shard(number)
        shard.check_all()
        return shard

    def token_view(self, shard: int) -> TokenIds:
        """(rows, sequence_length) view of a shard's file, nothing copied; every row of it is checked."""
        return self.checked_shard(shard).token_ids

    def locate(self, rows: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Shard numbers and rows within those shards.

        Raises:
            IndexError: if a row is outside ``[0, num_rows)``.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= self.num_rows):
            raise IndexError(
                f"{self.folder}: expected rows in [0, {self.num_rows}), found {wanted.min()}..{wanted.max()}"
            )
        shards = np.searchsorted(self._first_rows, wanted, side="right") - 1
        return shards, wanted - self._first_rows[shards]

    def gather(
        self, rows: npt.ArrayLike, out: TokenIds | None = None, *, places: npt.ArrayLike | None = None
    ) -> TokenIds:
        """Copy rows, in the order asked for.

        Args:
            rows: (n,) row numbers; repeats are allowed.
            out: (n, sequence_length) buffer to fill, of the stored or any wider integer type; made when None.
            places: (n,) where in ``out`` each row goes, so that several datasets fill one batch; in order when None,
                and then ``out`` has exactly n rows.

        Returns:
            ``out``.
        """
        shards, local = self.locate(rows)
        if out is None:
            out = np.empty((len(local), self.sequence_length), self.vocabulary.dtype)
        into = range(len(local)) if places is None else np.asarray(places, np.int64).tolist()
        if out.shape[1:] != (self.sequence_length,) or (places is None and len(out) != len(local)):
            raise ValueError(f"expected a buffer of shape {(len(local), self.sequence_length)}, found {out.shape}")
        # A loop of row copies: fancy indexing over several shards would copy everything twice.
        for place, shard, row in zip(into, shards.tolist(), local.tolist(), strict=True):
            out[place] = self.shard(shard).ids(row)
        return out

    def num_tokens(self, rows: npt.ArrayLike) -> Int32s:
        """(n,) ids of each row that are no padding."""
        shards, local = self.locate(rows)
        pairs = zip(shards.tolist(), local.tolist(), strict=True)
        return np.array([self.shard(shard).num_tokens[row] for shard, row in pairs], np.int32)

    def document_starts(self, row: int) -> Int32s:
        """(documents,) where each document of the row begins; the first is 0."""
        shard, local = self._locate_one(row)
        return shard.document_starts(local)

    def loss_spans(self, row: int) -> Int32s:
        """(spans, 2) half-open ranges of the row that are trained on."""
        shard, local = self._locate_one(row)
        return shard.loss_spans(local)

    def _locate_one(self, row: int) -> tuple[OpenShard, int]:
        shards, local = self.locate([row])
        return self.shard(int(shards[0])), int(local[0])

    def _drop(self, number: int) -> None:
        self._open.pop(number, None)
        for method in self._when_dropped:
            if (forget := method()) is not None:
                forget(number)

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.manifest.shards[number]
        path = self.folder / entry.path
        lazily = self._verify == "lazy"
        rest_crc32 = entry.rest_crc32 if lazily and isinstance(entry, PackedEntry) else None
        if self.cache is not None:
            path = self.cache.get(self.remote_shard(number), drop=functools.partial(self._drop, number))
        else:
            check_size(local_only(path, "packed shards that are read without a cache"), entry)
            if self._verify == "open" or (lazily and rest_crc32 is None):
                check_sha256(path, entry.sha256, path.stat().st_mtime_ns)
        opened = open_shard(path, rest_crc32=rest_crc32)
        if rest_crc32 is None:
            opened.trust()
        found, expected = opened.header.vocabulary, self._fingerprint
        if found != expected:
            raise FingerprintMismatch(
                f"{path}: written with vocabulary {found}, its manifest says {expected}; "
                "the folder mixes two datasets, pack it again"
            )
        if opened.token_ids.shape != (entry.num_rows, self.sequence_length):
            raise DatasetError(
                f"{path}: expected {entry.num_rows} rows of {self.sequence_length}, found {opened.token_ids.shape}; "
                "pack it again"
            )
        return opened


def open_packed(folder: Path, *, verify: Verify = "lazy", cache: ShardCache | None = None) -> PackedDataset:
    """Open a packed dataset.

    Args:
        cache: for a folder in an object store; of one on this machine nothing is cached.

    Raises:
        ConfigError: if it lies in an object store and there is no cache; or (later) the store or the cache's disk fails.
        DatasetError: if it has no manifest, is of another kind or format version, or (later) lacks a shard.
        ChecksumMismatch: if a shard's bytes are not the bytes that were written.
        FingerprintMismatch: if a shard was written with another vocabulary than its manifest names.
    """
    if cache is None:
        local_only(folder, "packed shards that are read without a cache")
    return PackedDataset(folder, read_manifest(folder), verify=verify, cache=cache)


def same_vocabulary(datasets: dict[str, PackedDataset]) -> Vocabulary:
    """The one vocabulary of several datasets.

    Raises:
        FingerprintMismatch: naming the first two that differ.
    """
    (first, reference), *rest = datasets.items()
    for name, dataset in rest:
        if dataset.vocabulary.fingerprint != reference.vocabulary.fingerprint:
            raise FingerprintMismatch(
                f"{dataset.folder}: {name} is packed with vocabulary {dataset.vocabulary.name} "
                f"({dataset.vocabulary.fingerprint}), {first} with {reference.vocabulary.name} "
                f"({reference.vocabulary.fingerprint}); pack one of them again with the vocabulary of the other"
            )
    return reference.vocabulary


def check_size(path: Path, entry: ShardEntry) -> None:
    """Raise ``DatasetError`` if a shard is missing or not as long as its manifest says."""
    if not path.is_file():
        raise DatasetError(f"{path}: named in the manifest and not there; copy it again or pack the dataset again")
    size = path.stat().st_size
    if size != entry.num_bytes:
        raise ChecksumMismatch(
            f"{path}: expected {entry.num_bytes:,} bytes, found {size:,}; copy it again or pack it again"
        )


@functools.cache
def check_sha256(path: Path, sha256: str, mtime_ns: int) -> None:
    """Raise ``ChecksumMismatch``, with the damaged rows where they can be told; once per process and file version."""
    found = file_sha256(path)
    if found == sha256:
        return
    raise ChecksumMismatch(
        f"{path}: expected sha256 {sha256[:16]}..., found {found[:16]}... ({_where_damaged(path)}); "
        "copy it again or pack it again"
    )


def damaged_rows(shard: OpenShard) -> list[range]:
    """Blocks of rows whose ids are not those that were written."""
    return [shard.rows_of(block) for block in range(len(shard.unchecked.blocks)) if not shard.is_whole(block)]


def _where_damaged(path: Path) -> str:
    try:
        blocks = damaged_rows(open_shard(path))
    except AnyGPTError as error:
        return f"its structure is unreadable: {error}"
    if not blocks:
        return "the ids, document starts and loss spans are whole; bytes that mean nothing to a reader are damaged"
    return "damaged rows: " + ", ".join(f"{block.start}..{block.stop - 1}" for block in blocks)
