"""Locks beside files, which the kernel lets go of when a process ends, however it ends (``flock``).

A file's lock is another file, ``FILE.lock``, since the file itself comes and goes. Lock files may be removed, too, by who
holds the lock exclusively; whoever has waited for one that was removed notices and takes the new one. Locks belong to the
*opened* lock file, so threads of one process exclude each other as processes do.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_SUFFIX = ".lock"


def try_lock(path: Path, kind: int) -> int | None:
    """An open file with the lock, or None if it is another's, or was removed meanwhile."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, kind)
        if is_at(lock, path):
            return lock
    except BlockingIOError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def make_exclusive(lock: int) -> bool:
    """Change a shared lock to an exclusive one if nobody else has it; it is lost otherwise."""
    try:
        # Of two that want it, the one that lets go first must not keep the other from it.
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(lock: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def lock_path(path: Path) -> Path:
    """Where the lock of a file is."""
    return path.with_name(path.name + LOCK_SUFFIX)
