"""What one process keeps of remote datasets on its disk: shards that are read now, and those that are needed next.

Where files lie, how processes share them and what is evicted is :mod:`shards.cache_folder`'s. Here is what a single
process adds: it *holds* the shards it reads, threads fetch ahead in the order in which rows will need them
(:meth:`ShardCache.read_ahead`), and what is needed no more is let go.

Reading ahead stays within the bound. :meth:`ShardCache.get` does what it must: if all room is held it lets go of what this
process needs last, and its reader drops its map of it, to fetch it again later; if that is not enough, because other
processes hold the rest, it goes beyond the bound by the one file. Both work, slowly, and a warning says how large the
cache should be.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.cache_folder import CacheFolder, HeldFile, RemoteShard, Stopped
from shards.errors import AnyGPTError, DatasetError

DEFAULT_BYTES = 64 << 30
THREADS = 4
_GIB = 1 << 30
_RETRY_S = 0.5

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """``anygpt/shards`` in the user's cache folder, or below ``TMPDIR`` where there is no home to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if sys.platform == "darwin" and "XDG_CACHE_HOME" not in os.environ:
        home = Path("~/Library/Caches").expanduser()
    existing = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    base = home if os.access(existing, os.W_OK) else Path(tempfile.gettempdir())
    return base / "anygpt" / "shards"


@dataclass(slots=True)
class _Held:
    file: HeldFile
    drops: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])


class ShardCache:
    """Shards of remote datasets as local files; one for all datasets of a process.

    :meth:`get` and :meth:`read_ahead` belong to one thread at a time, that of the reader.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = DEFAULT_BYTES, threads: int = THREADS) -> None:
        """
        Args:
            folder: on a local disk; None is :func:`default_folder`.
            max_bytes: of all files in it, whichever process fetched them.
            threads: that fetch ahead.
        """
        self._files = CacheFolder(folder or default_folder(), max_bytes)
        self._num_threads = threads
        self._changed = threading.Condition()
        # All of these under the condition's lock; shards by the names of their files.
        self._held: dict[str, _Held] = {}
        self._wanted: dict[str, RemoteShard] = {}
        self._fetching: set[str] = set()
        self._failed: dict[str, Exception] = {}
        self._threads: set[threading.Thread] = set()
        self._warned = self._urgent = False

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._files.folder

    def get(self, shard: RemoteShard, *, drop: Callable[[], None] = lambda: None) -> Path:
        """The shard's local file, whole and checked; waits for it, or fetches it.

        It stays where it is until it is let go: by a :meth:`read_ahead` that names it no more, or for lack of room.

        Args:
            drop: called when it is let go; the reader should then forget its map of it.

        Raises:
            ChecksumMismatch, ConfigError, DatasetError: as :meth:`CacheFolder.hold <shards.cache_folder.CacheFolder.hold>`;
                an error of a thread that fetched it ahead comes out here, once, with that one as its cause.
        """
        name = shard.name
        with self._changed:
            self._changed.wait_for(lambda: name not in self._fetching)
            error = self._failed.pop(name, None)
            if error is not None:
                raise _again(shard, error) from error
            missing = name not in self._held
            if missing:
                self._fetching.add(name)
        if missing:
            try:
                held = self._hold(shard)
                with self._changed:
                    self._held[name] = _Held(held)
            finally:
                with self._changed:
                    self._fetching.discard(name)
                    self._changed.notify_all()
        self._held[name].drops.append(drop)
        return self._held[name].file.path

    def read_ahead(self, wanted: Sequence[RemoteShard]) -> None:
        """Fetch these in this order, as far as there is room, and let go of all others.

        Args:
            wanted: those that are read now first, then those that follow; none: nothing is needed any more.
        """
        with self._changed:
            self._wanted = {shard.name: shard for shard in wanted}
            self._failed = {name: error for name, error in self._failed.items() if name in self._wanted}
            released = [self._held.pop(name) for name in list(self._held) if name not in self._wanted]
            missing = len(self._wanted.keys() - self._held.keys())
            for _ in range(min(missing, self._num_threads) - len(self._threads)):
                # Daemons: a program may end in the middle of a download, the next one removes what it left.
                thread = threading.Thread(target=self._fetch_ahead, name="read-ahead", daemon=True)
                self._threads.add(thread)
                thread.start()
            self._changed.notify_all()
        for held in released:
            _let_go(held)

    def close(self) -> None:
        """Let go of everything and end all downloads; may be used again."""
        self.read_ahead(())

    def _hold(self, shard: RemoteShard) -> HeldFile:
        """A shard that is needed now, whatever must be let go for it."""
        try:
            while (file := self._files.hold(shard)) is None:
                self._warn(shard)
                with self._changed:
                    self._urgent = True
                    last = self._needed_last()
                    held = self._held.pop(last) if last else None
                    if held is None and self._fetching != {shard.name}:
                        # What our own threads are fetching is the next that we can let go of.
                        self._changed.wait_for(lambda: self._held or self._fetching == {shard.name})
                        continue
                if held is None:
                    file = self._files.hold(shard, beyond=True)
                    assert file is not None
                    return file
                _let_go(held)
            return file
        finally:
            self._urgent = False

    def _needed_last(self) -> str | None:
        places = {name: place for place, name in enumerate(self._wanted)}
        return max(self._held, key=lambda name: places.get(name, len(places)), default=None)

    def _warn(self, shard: RemoteShard) -> None:
        if self._warned:
            return
        self._warned = True
        needed = sum(one.num_bytes for one in {**self._wanted, shard.name: shard}.values())
        _log.warning(
            "%s: the cache may have %.2f GiB, and the %d shards that rows are read from by turns have %.2f GiB; they are "
            "fetched again and again: set cache_gib to %d or more, or shards_per_window to less",
            self.folder,
            self._files.max_bytes / _GIB,
            len(self._wanted.keys() | {shard.name}),
            needed / _GIB,
            math.ceil(1.25 * needed / _GIB),
        )

    def _fetch_ahead(self) -> None:
        """What a thread does: the next one that is missing, until none is."""
        while (shard := self._next_missing()) is not None:
            name, held, error = shard.name, None, None
            try:
                held = self._files.hold(shard, stopped=lambda name=name: name not in self._wanted)
            except Stopped:
                pass
            except Exception as found:  # noqa: BLE001 - the caller gets it, if it comes so far
                error = found
            with self._changed:
                self._fetching.discard(name)
                if error is not None:
                    self._failed[name] = error
                if held is not None and name in self._wanted:
                    self._held[name] = _Held(held)
                    held = None
                full = error is None and name in self._wanted and name not in self._held
                self._changed.notify_all()
                if full:
                    self._changed.wait(_RETRY_S)
            if held is not None:
                held.release()

    def _next_missing(self) -> RemoteShard | None:
        with self._changed:
            while True:
                # Room that is made for a shard that is needed now is not ours.
                self._changed.wait_for(lambda: not self._urgent)
                busy = self._held.keys() | self._fetching | self._failed.keys()
                shard = next((shard for name, shard in self._wanted.items() if name not in busy), None)
                if shard is None:
                    self._threads.discard(threading.current_thread())
                    return None
                # Rooms are taken in order: a thread that is quick must not take that of one that fetches what comes before.
                fetched = sum(self._wanted[name].num_bytes for name in self._fetching if name in self._wanted)
                taken = fetched + sum(held.file.num_bytes for held in self._held.values())
                if taken + shard.num_bytes <= self._files.max_bytes or not busy:
                    self._fetching.add(shard.name)
                    return shard
                self._changed.wait(_RETRY_S)


def _let_go(held: _Held) -> None:
    # First the map, then the lock: whoever evicts the file then gets its room, too.
    for drop in held.drops:
        drop()
    held.file.release()


def _again(shard: RemoteShard, error: Exception) -> AnyGPTError:
    """An error of another thread, for the one it concerns."""
    if isinstance(error, AnyGPTError):
        return type(error)(str(error))
    return DatasetError(f"{shard.path}: expected to fetch it, found {error!r}; see the cause above")
