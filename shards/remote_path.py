"""Paths in object stores that tell "it is not there" from "I could not see".

fsspec answers ``isfile`` with no whatever went wrong, and a lost connection is an ``OSError`` like any other. Code that
reads files takes the first for a missing medium, the second for a damaged archive, and would reject, filter or do again
what is fine. Here a missing object is a ``FileNotFoundError``, or no; everything else that a store or the way to it does
is a :class:`ConfigError` that stops the run (after the libraries' own retries). Reading works as with ``pathlib.Path``;
objects are written by :mod:`shards.writer` alone.

Imported by :func:`shards.storage.open_path` when the first remote path is named, because fsspec takes its time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from upath.implementations.cloud import GCSPath, S3Path

from shards.errors import ConfigError
from shards.storage import check_access, explained

if TYPE_CHECKING:
    # At run time a mixin, put before the library's own class; for types, any path of the library.
    _Base = S3Path
else:
    _Base = object


class RemoteFile(io.BufferedIOBase):
    """A file of an object store being read; nothing it raises is taken for damage of the file."""

    def __init__(self, path: Any, file: Any) -> None:
        self._path, self._file = path, file

    @property
    def size(self) -> int:
        """Bytes in the whole file."""
        return int(self._file.size)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, and a seek alone asks nothing of the store."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As any file's."""
        return int(self._file.seek(offset, whence))

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's.

        Raises:
            ConfigError: the store or the way to it failed.
        """
        with explained(self._path):
            return bytes(self._file.read(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        """As :meth:`read`."""
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """As any file's; raises as :meth:`read`."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of what was fetched."""
        if not self.closed:
            self._file.close()
        super().close()


class _Strict(_Base):
    """What a remote path does otherwise than its library; see above."""

    __slots__ = ()
    # Asks the library for this very class, where it would take its own.
    _protocol_dispatch = False

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **options: Any,
    ) -> Any:
        """Open for reading.

        Raises:
            FileNotFoundError: it is not there.
            ConfigError: it is to be written; or the store failed.
        """
        if set(mode) - set("rbt"):
            raise ConfigError(
                f"{self}: expected to be read, found mode {mode!r}; write with shards.writer.commit_bytes"
            )
        with explained(self, missing=True):
            file: Any = RemoteFile(self, self.fs.open(self.path, "rb", **options))
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """The whole object, by one request."""
        fs: Any = self.fs
        with explained(self, missing=True):
            return bytes(fs.cat_file(self.path))

    def read_text(self, encoding: Any = None, errors: Any = None, newline: Any = None) -> str:
        """The whole object as text."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors, newline).read()

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        """Size and time."""
        with explained(self, missing=True):
            return super().stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object of that name, or one below it."""
        return self._kind() != ""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object of that name."""
        return self._kind() == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there are objects below it: a folder is a prefix of names. ``ConfigError`` if the bucket is missing."""
        kind = self._kind()
        if not kind:
            check_access(self)
        return kind == "directory"

    def iterdir(self) -> Iterator[Any]:
        """Files and folders in it, by one listing."""
        with explained(self, missing=True):
            return iter(list(super().iterdir()))

    def glob(self, pattern: str, **options: Any) -> Iterator[Any]:
        """Files and folders that match."""
        with explained(self, missing=True):
            return iter(list(super().glob(pattern, **options)))

    def rglob(self, pattern: str, **options: Any) -> Iterator[Any]:
        """Files and folders below it that match."""
        with explained(self, missing=True):
            return iter(list(super().rglob(pattern, **options)))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders come with their files. Buckets are made by their owners."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object, by one request."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        with explained(self, missing=missing_ok):
            try:
                self.fs.rm_file(self.path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def replace(self, target: Any) -> Any:
        """Never: an object store has no rename."""
        raise ConfigError(f"{self}: expected no rename in an object store; write with shards.writer.commit_bytes")

    def _kind(self) -> str:
        with explained(self):
            try:
                return str(self.fs.info(self.path)["type"])
            except FileNotFoundError:
                return ""


class S3StrictPath(_Strict, S3Path):
    """A path in an S3 store."""

    __slots__ = ()


class GSStrictPath(_Strict, GCSPath):
    """A path in Google Cloud Storage."""

    __slots__ = ()


PATHS: dict[str, type[Any]] = {"s3": S3StrictPath, "gs": GSStrictPath}
