"""Committing files, so that a file under its final name is always whole.

On this machine: temporary name -> fsync -> rename -> fsync of the folder. In an object store, which has no rename and
needs none: one request makes the whole object visible, and what was stored is then compared with what was sent
(:func:`shards.storage.put_bytes`). A writer that is killed leaves a temporary file here, and nothing visible there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.storage import is_remote, local_only, put_bytes

TEMPORARY_SUFFIX = ".tmp"


def commit_bytes(path: Path, data: bytes, *, writer: str = "") -> str:
    """Write ``data`` under ``path`` atomically and durably; arguments, result and errors of :func:`commit_pieces`."""
    return commit_pieces(path, [data], writer=writer)


def commit_pieces(path: Path, pieces: Iterable[bytes], *, writer: str = "") -> str:
    """Write bytes under ``path`` atomically and durably, piece by piece; to an object store in one go.

    Args:
        writer: part of the temporary name, where two processes may commit the same file at once.

    Returns:
        sha256 of the bytes, hex.

    Raises:
        ConfigError, ChecksumMismatch: an object store refused them, or holds others.
        OSError: the disk did.
    """
    if is_remote(path):
        data = b"".join(pieces)
        put_bytes(path, data)
        return hashlib.sha256(data).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + writer + TEMPORARY_SUFFIX)
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        commit_file(temporary, path)
    except OSError:
        # A full disk is not made fuller by what did not fit.
        temporary.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def commit_file(temporary: Path, path: Path) -> None:
    """Rename a closed, fsynced file to its final name and make the rename itself durable; on this machine only."""
    local_only(path, "files that are written piece by piece")
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def commit_table(path: Path, table: pa.Table, *, encodings: Mapping[str, str] | None = None, writer: str = "") -> str:
    """Write a Parquet + zstd file atomically; the bytes depend on the table and the pyarrow version alone.

    Args:
        encodings: column -> Parquet's name of an encoding; the others get a dictionary.

    Returns:
        sha256 of the file, hex.
    """
    sink = pa.BufferOutputStream()
    dictionaries: Any = [name for name in table.column_names if name not in encodings] if encodings else True
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=1 << 16,
        use_dictionary=dictionaries,
        column_encoding=dict(encodings) if encodings else None,
    )
    return commit_bytes(path, sink.getvalue().to_pybytes(), writer=writer)


def remove_temporaries(*folders: Path) -> None:
    """Remove what writers that were killed have left in these folders; in an object store they leave nothing there."""
    for folder in folders:
        if not is_remote(folder):
            for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
