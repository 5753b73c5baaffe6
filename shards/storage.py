"""Folders on this machine or in an object store: ``/data/x``, ``file:///data/x``, ``s3://bucket/x``, ``gs://bucket/x``.

:func:`open_path` turns text into a path. A local one is a plain :class:`pathlib.Path`. A remote one is a ``UPath`` of
universal_pathlib, which has the same methods over fsspec (s3fs, gcsfs); neither is imported before the first remote path.
A ``UPath`` is no subclass of ``Path``, but it is typed as one here: code above says ``folder / name``, ``open``,
``read_bytes``, ``is_file`` and need not know. What is different is here: :func:`is_remote`, finding files by one listing,
files that are read out of order (:func:`open_random`), and writing (:mod:`shards.writer`, :mod:`shards.lease`).

Credentials and endpoints come from where the libraries look for them (``AWS_*`` variables, profiles, instance roles,
``AWS_ENDPOINT_URL``, ``FSSPEC_S3_*``), never from a config of ours. See ``docs/storage.md``.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from shutil import disk_usage
from tempfile import gettempdir
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from shards.errors import ChecksumMismatch, ConfigError

STORES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs")}
"""Scheme -> the library that speaks it, and the extra of ours that installs it."""
BLOCK_BYTES = 8 << 20
"""Of one request when a file is read from start to end."""
PART_BYTES = 16 << 20
"""Of one request of a multipart upload; with at most 10,000 parts, an object may have 160 GB."""
ATTEMPTS = 6
"""Of one request, with growing pauses: throttling and lost connections are everyday in an object store."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(/{1,2})")
# Those whose exceptions are no OSError, although they are about the network.
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google"}
# A listing that is remembered would hide what another process has committed since.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "default_block_size": BLOCK_BYTES,
        "default_cache_type": "readahead",
        "config_kwargs": {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}},
    },
    "gs": {"use_listings_cache": False, "block_size": BLOCK_BYTES},
}


def open_path(text: str | Path) -> Path:
    """The path that a text names; a path is returned as it is.

    Raises:
        ConfigError: a scheme we do not know, no bucket, or the library of that store is not installed.
    """
    if not isinstance(text, str):
        return text
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    scheme, slashes = found[1].lower(), found[2]
    if scheme == "file":
        return _local(text)
    if scheme not in STORES:
        raise ConfigError(
            f"{text}: expected a local path, file://, {', '.join(f'{name}://' for name in STORES)}, found {scheme}://; "
            "copy the data to one of those"
        )
    if slashes != "//":
        raise ConfigError(f"{text}: expected {scheme}://BUCKET/FOLDER, found one slash; write two")
    if not urlsplit(text).netloc:
        raise ConfigError(f"{text}: expected {scheme}://BUCKET/FOLDER, found no bucket; name one")
    return _remote(text, scheme)


def is_remote(path: Path) -> bool:
    """Whether a path of :func:`open_path` lies in an object store."""
    return not isinstance(path, Path)


def local_only(path: Path, what: str) -> Path:
    """The path itself, of something that must lie on this machine.

    Args:
        what: e.g. ``packed shards``.

    Raises:
        ConfigError: it is remote.
    """
    if is_remote(path):
        raise ConfigError(f"{path}: expected a local folder for {what}, found an object store; copy it to a local disk")
    return path


def file_system(path: Path) -> Any:
    """The fsspec file system of a remote path."""
    return cast(Any, path).fs


def key_of(path: Path) -> str:
    """``bucket/key`` of a remote path, as its file system wants it."""
    return str(cast(Any, path).path)


@contextmanager
def open_random(path: Path) -> Generator[IO[bytes]]:
    """A file whose parts are read in any order, some of them twice: an archive with an index, a Parquet file.

    Of a remote file every block is fetched at most once, when it is first needed, and kept in a sparse temporary file
    (on the disk of ``TMPDIR``, no more than the file's size) that is gone with the last reference to it.

    Raises:
        FileNotFoundError: it is not there.
        ConfigError: there is no room for it, or the store failed.
    """
    with _open_sparse(path) if is_remote(path) else path.open("rb") as file:
        yield file


def arrow_source(path: Path) -> Any:
    """What pyarrow opens: a local path, or a remote file as :func:`open_random` has it."""
    return _open_sparse(path) if is_remote(path) else path


def list_files(folder: Path) -> dict[str, int]:
    """Every file below a folder: its name relative to the folder, and its size. Of a remote folder by one listing.

    Raises:
        FileNotFoundError: the bucket is not there.
        PermissionError: it may not be listed.
    """
    if not is_remote(folder):
        return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    start = key_of(folder).rstrip("/") + "/"
    found: dict[str, Any] = file_system(folder).find(start, detail=True)
    # Consoles make "folders": objects without a byte whose names end in a slash.
    return {
        name.removeprefix(start): int(facts["size"])
        for name, facts in found.items()
        if facts["type"] == "file" and name.removeprefix(start) and not name.endswith("/")
    }


def match_files(folder: Path, patterns: Iterable[str]) -> set[Path]:
    """Files below a folder that match a pattern in the sense of ``rglob``, which takes no ``**`` here."""
    patterns = tuple(patterns)
    if not is_remote(folder):
        return {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    names = (PurePosixPath(name) for name in list_files(folder))
    return {folder / str(name) for name in names if any(name.match(pattern) for pattern in patterns)}


def put_bytes(path: Path, data: bytes) -> None:
    """Write an object: readers see all of it or none of it, at any moment and whatever becomes of this process.

    Small ones are one PUT; from twice :data:`PART_BYTES` on they are a multipart upload, which no reader and no listing
    sees before its last request. What was stored is then compared with what was sent.

    Raises:
        ConfigError: the bucket is missing, denied or out of reach.
        ChecksumMismatch: the store holds something else.
    """
    fs, key = file_system(path), key_of(path)
    with explained(path):
        fs.pipe_file(key, data, **({"chunksize": PART_BYTES} if scheme_of(path) == "s3" else {}))
        facts = fs.info(key)
        # Where the store tells no MD5 (encryption, other sizes of parts), the bytes themselves do.
        tags = {str(facts.get("ETag", "")).strip('"'), str(facts.get("md5Hash", ""))}
        same = facts["size"] == len(data) and (not tags.isdisjoint(_checksums(data)) or fs.cat_file(key) == data)
    if not same:
        raise ChecksumMismatch(
            f"{path}: expected the {len(data):,} bytes just written, found {facts['size']:,} others; does another program "
            "write there? run the same command again"
        )


def check_access(folder: Any) -> None:
    """See that a remote folder's bucket is there and lets us in; of a local folder nothing is asked.

    Raises:
        ConfigError: the bucket is missing, denied, or out of reach.
    """
    if not is_remote(folder):
        return
    fs, (bucket, _, prefix) = file_system(folder), key_of(folder).partition("/")
    with explained(folder):
        if scheme_of(folder) == "s3":
            # The rights of an account often end at a prefix, so nothing above it is asked for.
            fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/".lstrip("/"), MaxKeys=1)
        elif not fs.exists(bucket):
            raise FileNotFoundError(bucket)


@contextmanager
def explained(path: object, *, missing: bool = False) -> Generator[None]:
    """Say in our words what a store refused.

    Args:
        missing: the object itself may be missing, which is the caller's to judge.

    Raises:
        FileNotFoundError: it is, if it may be.
        ConfigError: the bucket is missing, the request denied, or nobody answers.
    """
    try:
        yield
    except FileNotFoundError as error:
        if missing:
            raise
        raise ConfigError(
            f"{path}: expected a bucket of that name, found none; create it or correct the name"
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise ConfigError(
                f"{path}: expected to be let in, found {what}; check credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, the "
                "machine's role) and the account's rights: list, read, write and delete below this folder"
            ) from error
        raise ConfigError(
            f"{path}: expected an object store that answers, found {what}; check network and endpoint "
            "(AWS_ENDPOINT_URL), and run the same command again"
        ) from error


def scheme_of(path: Path) -> str:
    """``s3`` or ``gs`` of a remote path."""
    return str(cast(Any, path).protocol)


def _open_sparse(path: Path) -> IO[bytes]:
    file: Any = cast(Any, path).open("rb", cache_type="mmap")
    folder = gettempdir()
    # The file is mapped into memory: a disk that fills up meanwhile would end the process without a word.
    if file.size > (free := disk_usage(folder).free):
        file.close()
        raise ConfigError(
            f"{folder}: expected room for {path} ({file.size:,} bytes), found {free:,}; set TMPDIR to a larger disk"
        )
    return file


def _checksums(data: bytes) -> set[str]:
    """What stores say of an object: its MD5, or that of its parts' MD5s and how many there are."""
    if len(data) >= 2 * PART_BYTES:
        view = memoryview(data)
        parts = [_md5(view[start : start + PART_BYTES]) for start in range(0, len(data), PART_BYTES)]
        return {f"{_md5(b''.join(parts)).hex()}-{len(parts)}", b64encode(_md5(data)).decode()}
    return {_md5(data).hex(), b64encode(_md5(data)).decode()}


def _md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _local(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in {"", "localhost"}:
        raise ConfigError(f"{text}: expected file:///FOLDER, found the host {parts.netloc!r}; write three slashes")
    return Path(unquote(parts.path))


def _remote(text: str, scheme: str) -> Path:
    library, extra = STORES[scheme]
    if find_spec("upath") is None or find_spec(library) is None:
        raise ConfigError(
            f"{text}: expected the library {library}, which reads {scheme}://, found none; "
            f"install it with: pip install anygpt-data[{extra}]"
        )
    # Imported late: a run on local files needs none of it.
    return cast(
        Path, import_module("shards.remote_path").PATHS[scheme](text.rstrip("/"), protocol=scheme, **_OPTIONS[scheme])
    )
