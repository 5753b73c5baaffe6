"""WebDataset: tar files whose neighbouring members of one name are a sample.

Source: the WebDataset conventions. A member's name up to the first dot of its last part is the sample's key, the rest its
extension, lower case; members of a key follow each other; members that begin with ``__`` are metadata. A tar ends with two
empty blocks of 512 bytes, so one that was cut is told from a whole one.

Written is a tar for each shard, ``shard-NNNNN.tar``, and in it for each row, whose key is its number in the dataset,

    KEY.json    {"document_starts": [...], "loss_spans": [[begin, end], ...], "num_tokens": n}
    KEY.npy     the row, padding included, so that samples of equal shape are collated as they are

with no times, owners or other traces of a machine: equal rows give equal bytes. Read are samples with one ``.npy`` of
integers, or with the extension that is named; of ``.json`` the three keys above, where all are there.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from shards.convert_rows import ForeignRow, as_spans, shard_rows
from shards.convert_sidecar import Sidecar
from shards.errors import DatasetError
from shards.packed import PackedRow
from shards.reader import PackedDataset
from shards.vocabulary import TokenIds
from shards.writer import commit_pieces

SUFFIX = ".tar"

_AGAIN = "copy it again, or make it again with the program that wrote it"
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_END = b"\0" * 1024
_RECORD = tarfile.RECORDSIZE


def write(folder: Path, dataset: PackedDataset) -> None:
    """Write one tar for each shard."""
    first = 0
    for number in range(dataset.num_shards):
        shard = dataset.checked_shard(number)
        commit_pieces(folder / f"shard-{number:05d}{SUFFIX}", _tar(shard_rows(shard), first))
        first += len(shard.token_ids)


def inputs(source: Path) -> list[Path]:
    """One tar, or all of a folder in the order of their names.

    Raises:
        DatasetError: there is none.
    """
    found = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
    if not found or not all(path.is_file() for path in found):
        raise DatasetError(f"{source}: expected {SUFFIX} files, not compressed, found none; give their folder")
    return found


def read(source: Path, *, column: str, sidecar: Sidecar | None) -> Iterator[ForeignRow]:
    """Samples in the order of the tars; rows where they say their documents.

    Args:
        column: the extension of the member that holds the ids; empty for the only one that ends in ``npy``.

    Raises:
        DatasetError: a tar is cut or no tar, or a sample has no ids.
    """
    # A dataset without a shard is an export like any other.
    files = [] if sidecar is not None and not sidecar.origin.shards else inputs(source)
    for path in files:
        for key, members in _samples(path):
            yield _to_row(f"{path.name}/{key}", members, column)


def _tar(rows: Iterator[PackedRow], first: int) -> Iterator[bytes]:
    size = 0
    for number, row in enumerate(rows, first):
        facts = {"document_starts": row.document_starts, "loss_spans": row.loss_spans, "num_tokens": row.num_tokens}
        array = io.BytesIO()
        np.lib.format.write_array(array, row.token_ids, version=(1, 0), allow_pickle=False)
        for extension, data in (("json", json.dumps(facts).encode()), ("npy", array.getvalue())):
            member = tarfile.TarInfo(f"{number:09d}.{extension}")
            member.size, member.mode = len(data), 0o444
            piece = member.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
            size += len(piece)
            yield piece
    yield _END + b"\0" * (-(size + len(_END)) % _RECORD)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, members = "", dict[str, bytes]()
    try:
        with path.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # Or the archive would remember every member it has seen.
                cast(Any, tar).members = []
                found = _KEY.match(info.name)
                if not info.isreg() or not found or info.name.startswith("__"):
                    continue
                if found[1] != key:
                    if members:
                        yield key, members
                    key, members = found[1], {}
                file = tar.extractfile(info)
                data = file.read() if file else b""
                if len(data) != info.size:
                    raise DatasetError(
                        f"{path}: {info.name}: expected {info.size:,} bytes, found {len(data):,}; {_AGAIN}"
                    )
                members[found[2].lower()] = data
            _check_end(path, opened, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{path}: expected a tar file, found {error}; {_AGAIN}") from error
    if members:
        yield key, members


def _check_end(path: Path, file: BinaryIO, offset: int) -> None:
    """Raise ``DatasetError`` unless a tar ends where its reader stopped, who takes a cut or damaged one for a short one."""
    file.seek(offset)
    if file.read(len(_END)) != _END:
        raise DatasetError(
            f"{path}: expected another member or the {len(_END)} zero bytes that end a tar at byte {offset:,}, found "
            f"neither in a file of {path.stat().st_size:,} bytes; {_AGAIN}"
        )


def _to_row(name: str, members: Mapping[str, bytes], column: str) -> ForeignRow:
    arrays = [extension for extension in members if f".{extension}".endswith(".npy")]
    wanted = column or (arrays[0] if len(arrays) == 1 else "")
    if wanted not in members:
        raise DatasetError(
            f"{name}: expected one member {f'.{column}' if column else '.npy'} with token ids, found "
            f"{', '.join(sorted(members))}; name its extension with --column"
        )
    try:
        ids = _array(members[wanted])
        facts: Any = json.loads(members.get("json", b"null"))
        if isinstance(facts, dict) and {"document_starts", "loss_spans", "num_tokens"} <= set(facts):
            starts = tuple(int(start) for start in facts["document_starts"])
            return ForeignRow(name, ids[: int(facts["num_tokens"])], starts, as_spans(facts["loss_spans"]), len(ids))
    except (ValueError, TypeError, EOFError) as error:
        raise DatasetError(
            f"{name}: expected token ids in .{wanted} and JSON beside it, found {error}; {_AGAIN}"
        ) from error
    return ForeignRow(name, ids, length=len(ids))


def _array(data: bytes) -> TokenIds:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "iu":
        raise ValueError(f"an array of {array.dtype}, which holds no ids")
    return array.reshape(-1)
