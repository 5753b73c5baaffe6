"""A folder on the local disk with whole shard files of remote datasets, shared by all processes of a machine.

One file a shard, named after its content (``shard-00007-<sha256>.arrow``), so that a dataset that is packed again is
another file and a copy can never be stale. Beside it lies a lock file, and everything hangs on locks of the kernel
(``flock``), which lets go of them when a process ends, however it ends; there is no shared memory and no list of
processes that could be out of date:

* who holds the lock *exclusively* fetches the shard: into ``.tmp``, its size and sha256 compared with the manifest's while
  it streams, then renamed. Others who want it wait for the lock and find the file. So a shard is fetched once per machine.
  Not fsynced: after a power failure the shards' own checksums (``verify = "lazy"``) notice what did not reach the disk.
* who holds it *shared* reads the shard, or will soon. Such files are not evicted.
* a ``.tmp`` whose lock is free belongs to a process that is gone, and is removed by whoever makes room next.

The folder is kept below a bound by evicting files that nobody holds, least recently used first. Room for a download is
taken before it starts, so a full disk is noticed then. On Linux a mapped file may be unlinked while it is read: its
pages stay until the last map of it is gone, so even a cache folder that is deleted by hand disturbs no running job.
Needs a file system with ``flock``: a local disk, not a shared one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import IO

from shards.errors import ChecksumMismatch, ConfigError, DatasetError
from shards.file_lock import is_at, lock_path, make_exclusive, try_lock
from shards.storage import BLOCK_BYTES
from shards.writer import TEMPORARY_SUFFIX

_ROOM = "room"
_NAME = re.compile(rf".*-[0-9a-f]{{64}}\.[a-z]+({re.escape(TEMPORARY_SUFFIX)})?")
_LOOK_AGAIN_S = 0.005
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard in a store, and what its manifest says of it."""

    path: Path
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Of its file in a cache folder."""
        return f"{self.path.stem}-{self.sha256}{self.path.suffix}"


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that is not evicted before :meth:`release`, or the end of this process."""

    path: Path
    num_bytes: int
    lock: int

    def release(self) -> None:
        """Whoever needs room may now evict it."""
        os.close(self.lock)


class Stopped(Exception):
    """A download was no longer wanted."""


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """A folder and its bound. Methods may be called from any thread of any process.

    Attributes:
        max_bytes: of all files together, those that are being fetched included.
    """

    folder: Path
    max_bytes: int

    def hold(
        self, shard: RemoteShard, *, beyond: bool = False, stopped: Callable[[], bool] = lambda: False
    ) -> HeldFile | None:
        """The shard's file, fetched unless it is there.

        Args:
            beyond: go beyond the bound where files that are held take all the room.
            stopped: asked during the download.

        Returns:
            None if there is no room for it within the bound.

        Raises:
            ChecksumMismatch: the store holds other bytes than the manifest says.
            ConfigError: the disk is full, the folder cannot be written, or the store is out of reach.
            DatasetError: the shard is not in the store.
            Stopped: as asked.
        """
        path = self.folder / shard.name
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            # Waits for whoever is fetching it.
            lock = self._lock(path, fcntl.LOCK_SH)
            try:
                if not _is_whole(path, shard):
                    if not make_exclusive(lock):
                        # Somebody else has just begun to; or looked, as we did.
                        os.close(lock)
                        time.sleep(_LOOK_AGAIN_S)
                        continue
                    if is_at(lock, lock_path(path)) and not self._fetch(shard, path, beyond, stopped):
                        os.close(lock)
                        return None
                    fcntl.flock(lock, fcntl.LOCK_SH)
                # No such change is atomic: an evictor may have come, and taken the lock file along.
                if _is_whole(path, shard) and is_at(lock, lock_path(path)):
                    # The time of last use.
                    os.utime(lock)
                    return HeldFile(path, shard.num_bytes, lock)
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def used_bytes(self) -> int:
        """Of all files, those that are being fetched included; one that is being renamed may count twice, or not."""
        return sum(size for _, size in self._files())

    def _fetch(self, shard: RemoteShard, path: Path, beyond: bool, stopped: Callable[[], bool]) -> bool:
        """Download a shard whose lock we have, unless another has before us; False if there is no room."""
        if _is_whole(path, shard):
            return True
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            with self._reserve(temporary, shard.num_bytes, beyond=beyond) as file:
                if file is None:
                    return False
                _download(shard, file, stopped)
            # Whoever counts meanwhile would see it under both names, or under neither.
            with self._room():
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return True

    @contextmanager
    def _reserve(self, temporary: Path, num_bytes: int, *, beyond: bool) -> Generator[IO[bytes] | None]:
        """A file with room for so many bytes; None if the bound allows none."""
        with self._room():
            file = self._open_reserved(temporary, num_bytes, beyond=beyond)
        if file is None:
            yield None
            return
        with file, _disk(self.folder):
            yield file

    def _open_reserved(self, temporary: Path, num_bytes: int, *, beyond: bool) -> IO[bytes] | None:
        excess = self._make_room(num_bytes, keep=temporary)
        if excess > 0 and not beyond:
            return None
        if (free := disk_usage(self.folder).free) < num_bytes:
            raise _disk_is_full(self.folder, num_bytes, f"{free:,}")
        with _disk(self.folder):
            file = temporary.open("wb")
            if hasattr(os, "posix_fallocate") and num_bytes:
                try:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                except OSError:
                    file.close()
                    raise
            return file

    @contextmanager
    def _room(self) -> Generator[None]:
        """While this lasts, no other counts the files, makes one or names one."""
        with _disk(self.folder):
            lock = self._lock(self.folder / _ROOM, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(lock)

    def _make_room(self, num_bytes: int, *, keep: Path) -> int:
        """Evict until so many bytes fit, least recently used first; how many bytes are still too many."""
        files: list[tuple[float, Path, int]] = []
        for path, size in self._files():
            if path != keep:
                files.append((_used_at(path), path, size))
        used = sum(size for _, _, size in files)
        # A disk that is smaller than the bound is a bound, too.
        excess = max(used + num_bytes - self.max_bytes, num_bytes - disk_usage(self.folder).free)
        for _, path, size in sorted(files, key=lambda file: (file[1].suffix != TEMPORARY_SUFFIX, file[0])):
            leftover = path.suffix == TEMPORARY_SUFFIX
            if excess <= 0 and not leftover:
                break
            shard = path.with_suffix("") if leftover else path
            lock = try_lock(lock_path(shard), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is None:
                continue
            path.unlink(missing_ok=True)
            if not leftover:
                # Whoever waits for it sees that it is gone, and makes another.
                lock_path(shard).unlink(missing_ok=True)
            os.close(lock)
            excess -= size
        return excess

    def _files(self) -> list[tuple[Path, int]]:
        found: list[tuple[Path, int]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Somebody may keep other things here, which are not ours to count or to remove.
                if _NAME.fullmatch(entry.name):
                    try:
                        found.append((Path(entry.path), entry.stat().st_size))
                    except FileNotFoundError:
                        continue
        return found

    def _lock(self, path: Path, kind: int) -> int:
        """Wait for the lock of a file."""
        with _disk(self.folder):
            while True:
                lock = try_lock(lock_path(path), kind)
                if lock is not None:
                    return lock


def _is_whole(path: Path, shard: RemoteShard) -> bool:
    try:
        return path.stat().st_size == shard.num_bytes
    except FileNotFoundError:
        return False


def _used_at(path: Path) -> float:
    try:
        return lock_path(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _download(shard: RemoteShard, file: IO[bytes], stopped: Callable[[], bool]) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with shard.path.open("rb") as source:
            while size <= shard.num_bytes and (piece := source.read(BLOCK_BYTES)):
                if stopped():
                    raise Stopped(str(shard.path))
                size += len(piece)
                digest.update(piece)
                file.write(piece)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{shard.path}: named in the manifest and not there; copy it there again or pack the dataset again"
        ) from error
    found = digest.hexdigest()
    if (size, found) != (shard.num_bytes, shard.sha256):
        more = " or more" if size > shard.num_bytes else ""
        raise ChecksumMismatch(
            f"{shard.path}: expected {shard.num_bytes:,} bytes with sha256 {shard.sha256[:16]}..., found {size:,}{more} "
            f"with {found[:16]}...; the object is not what was packed: copy it there again or pack the dataset again"
        )


@contextmanager
def _disk(folder: Path) -> Generator[None]:
    """Say in our words what the local disk refused."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_is_full(folder, None, str(error)) from error
        raise ConfigError(
            f"{folder}: expected a folder for cached shards that can be written, found {error}; set cache_dir to another"
        ) from error


def _disk_is_full(folder: Path, num_bytes: int | None, found: str) -> ConfigError:
    wanted = "room" if num_bytes is None else f"{num_bytes:,} bytes of room"
    return ConfigError(
        f"{folder}: expected {wanted} for a shard on this disk, found {found}; free some, or set cache_dir to a "
        "larger disk"
    )
