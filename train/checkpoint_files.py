"""How a run's tensors lie on disk: each process writes the fragments it owns, and anyone reads any slice.

A fragment is a stretch of one flattened parameter: its float32 master weights and Adam's two moments. A process writes its
own into ``rank-00003-of-00008-000.safetensors`` (further files when one grows too large), tensors ``master/NAME``,
``exp_avg/NAME``, ``exp_avg_sq/NAME``, and in the header's metadata where each fragment begins. These are ordinary
safetensors files. Of every block of bytes a CRC-32 is kept, so that a reader of a slice checks what it reads and no more.

The header is written here and not by the library, because it takes whole files only: here bytes go from the copy in host
memory to the disk in one pass that sums them up on the way, without a second copy.

No torch, no collective: this runs in a background thread beside the training.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import CheckpointError

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (MASTER, *MOMENTS)
BLOCK_BYTES = 1 << 23
"""Bytes of one checksum; a slice that is read costs the check of the blocks it touches."""

FILE_BYTES = 4 << 30
"""A process begins another file beyond this."""

Floats = npt.NDArray[np.float32]
_DTYPES = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
assert sys.byteorder == "little", "safetensors are little-endian, and arrays are written as they lie in memory"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Values ``[start, start + n)`` of a flattened parameter.

    Attributes:
        arrays: by kind, (n,) float32 each.
    """

    name: str
    start: int
    arrays: Mapping[str, Floats]

    @property
    def count(self) -> int:
        """How many values of the parameter."""
        return len(self.arrays[MASTER])


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint: its size, and the CRC-32 of every block; none in files of format 1."""

    bytes: int
    block_crc32: Sequence[int] | None = None
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Written:
    """What one process has written.

    Attributes:
        files: by name.
        places: by parameter: file, start and count of the fragment; a process has at most one of each parameter.
    """

    files: Mapping[str, StoredFile]
    places: Mapping[str, tuple[str, int, int]]

    def to_json(self) -> dict[str, Any]:
        """For the marker that tells the first process."""
        files = {name: {"bytes": file.bytes, "block_crc32": file.block_crc32} for name, file in self.files.items()}
        return {"files": files, "places": {name: list(place) for name, place in self.places.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Written:
        """The inverse of :meth:`to_json`."""
        places = {name: (str(file), int(start), int(count)) for name, (file, start, count) in data["places"].items()}
        return cls({name: StoredFile(**file) for name, file in data["files"].items()}, places)


def rank_name(rank: int, world_size: int) -> str:
    """What the names of a process's files begin with."""
    return f"rank-{rank:05d}-of-{world_size:05d}"


def write_fragments(
    folder: Path,
    fragments: Iterable[Fragment],
    *,
    rank: int,
    world_size: int,
    more: Mapping[str, npt.NDArray[np.uint8]] | None = None,
    file_bytes: int = FILE_BYTES,
) -> Written:
    """Write and sync the files of one process.

    Args:
        more: other tensors, by key; they go into the first file.

    Raises:
        OSError: the disk did not take it.
    """
    files: dict[str, StoredFile] = {}
    places: dict[str, tuple[str, int, int]] = {}
    for number, group in enumerate(_groups(fragments, file_bytes)):
        name = f"{rank_name(rank, world_size)}-{number:03d}.safetensors"
        tensors: dict[str, npt.NDArray[Any]] = dict(more or {}) if number == 0 else {}
        for fragment in group:
            assert fragment.name not in places, f"{fragment.name}: two fragments on one process"
            places[fragment.name] = (name, fragment.start, fragment.count)
            tensors |= {f"{kind}/{fragment.name}": fragment.arrays[kind] for kind in KINDS}
        starts = {fragment.name: fragment.start for fragment in group}
        files[name] = write_pieces(folder / name, _file_pieces(tensors, {"format": "pt", "starts": json.dumps(starts)}))
    return Written(files, places)


def write_pieces(path: Path, pieces: Iterable[memoryview | bytes]) -> StoredFile:
    """Write a new file and sync it; its size and checksums."""
    written, checksums = 0, list[int]()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while len(rest):
                into = written % BLOCK_BYTES
                if into == 0:
                    checksums.append(0)
                count = os.write(descriptor, rest[: BLOCK_BYTES - into])
                checksums[-1] = zlib.crc32(rest[:count], checksums[-1])
                rest, written = rest[count:], written + count
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return StoredFile(written, checksums, BLOCK_BYTES)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class FileReader:
    """Reads slices of one safetensors file and checks the blocks they touch.

    Raises:
        CheckpointError: the file is shorter than it was, or its bytes are others.
    """

    path: Path
    file: StoredFile
    _header: dict[str, Any] = field(default_factory=dict[str, Any], init=False)
    _data_start: int = field(default=0, init=False)
    _block: tuple[int, bytearray] = field(default=(-1, bytearray()), init=False)

    def read(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Values ``[start, stop)`` of a flattened tensor."""
        entry = self._entry(key)
        dtype, begin = _DTYPES[entry["dtype"]], self._data_start + entry["data_offsets"][0]
        values = np.empty(stop - start, dtype)
        if len(values):
            self._fill(begin + start * dtype.itemsize, values.data.cast("B"))
        return values

    def keys(self) -> list[str]:
        """Of all tensors in the file."""
        self._read_header()
        return [key for key in self._header if key != "__metadata__"]

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor, as it is stored."""
        return tuple(self._entry(key)["shape"])

    def check(self) -> None:
        """Read every byte and compare it with its checksum."""
        block = bytearray(self.file.block_bytes)
        for start in range(0, self.file.bytes, len(block)):
            self._fill(start, memoryview(block)[: self.file.bytes - start])

    def _entry(self, key: str) -> dict[str, Any]:
        self._read_header()
        if key not in self._header:
            raise CheckpointError(f"{self.path}: expected a tensor {key!r}, found none; the checkpoint is damaged")
        return self._header[key]

    def _read_header(self) -> None:
        if self._header:
            return
        length = bytearray(8)
        self._fill(0, memoryview(length))
        header = bytearray(int.from_bytes(length, "little"))
        self._fill(8, memoryview(header))
        self._header, self._data_start = json.loads(header), 8 + len(header)

    def _fill(self, begin: int, target: memoryview) -> None:
        """Read ``len(target)`` bytes from ``begin`` on, block by block."""
        if self.file.block_crc32 is None:
            self._read_into(begin, target)
            return
        end, size = begin + len(target), self.file.block_bytes
        for number in range(begin // size, -(-end // size)):
            first, last = number * size, min((number + 1) * size, self.file.bytes)
            part = target[max(first, begin) - begin : min(last, end) - begin]
            if len(part) == last - first:
                self._read_into(first, part)
                self._check(number, part)
                continue
            if self._block[0] != number:
                block = bytearray(last - first)
                self._read_into(first, memoryview(block))
                self._check(number, memoryview(block))
                self._block = (number, block)
            offset = max(first, begin) - first
            part[:] = memoryview(self._block[1])[offset : offset + len(part)]

    def _read_into(self, offset: int, target: memoryview) -> None:
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            while len(target):
                count = file.readinto(target)
                if not count:
                    raise CheckpointError(
                        f"{self.path}: expected {self.file.bytes} bytes, found fewer; remove this checkpoint to continue "
                        "from the one before"
                    )
                target = target[count:]

    def _check(self, number: int, data: memoryview) -> None:
        assert self.file.block_crc32 is not None
        found = zlib.crc32(data)
        if found != self.file.block_crc32[number]:
            raise CheckpointError(
                f"{self.path}: bytes from {number * self.file.block_bytes} on: expected checksum "
                f"{self.file.block_crc32[number]:08x}, found {found:08x}; the file is damaged, remove this checkpoint to "
                "continue from the one before"
            )


def _groups(fragments: Iterable[Fragment], file_bytes: int) -> Iterator[list[Fragment]]:
    """At least one, so that every process has a file."""
    group: list[Fragment] = []
    size = 0
    for fragment in fragments:
        own = sum(array.nbytes for array in fragment.arrays.values())
        if group and size + own > file_bytes:
            yield group
            group, size = [], 0
        group.append(fragment)
        size += own
    yield group


def _file_pieces(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> Iterator[memoryview | bytes]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    # The library expects wide types first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    for key, array in ordered:
        stop = offset + array.nbytes
        header[key] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, array in ordered:
        if array.nbytes:
            yield np.ascontiguousarray(array).data.cast("B")
