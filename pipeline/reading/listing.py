"""Counting what is in many files, on all cores of this machine.

A unit is a slice of a file, so before the first unit every file is opened once to count its inputs. That is little work
for one file and hours for all of LAION in one process (a tar of 10,000 pictures: 0.4 s), so above a few
dozen files they are counted in processes. The result is the same, in the same order.

Processes are spawned, never forked: a fork would take over the locks of the caller's threads (Ray, pyarrow) as they are.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipeline.samples import Source

PARALLEL_FROM = 48
"""Files; below, starting processes costs more than it saves."""
MAX_PROCESSES = 32


def list_sources(
    paths: Sequence[Path],
    count: Callable[[Path], int],
    *,
    parallel_from: int = PARALLEL_FROM,
    processes: int | None = None,
) -> list[Source]:
    """One source a file, in the order of ``paths``.

    Args:
        count: number of inputs in a file; a function of a module, so that another process finds it.
        parallel_from: number of files from which on processes are used.
        processes: how many; one a core, up to :data:`MAX_PROCESSES`, if not given.
    """
    processes = min(processes or _cores(), MAX_PROCESSES, len(paths))
    # Children of a pool may have no children of their own.
    if len(paths) < parallel_from or processes < 2 or multiprocessing.current_process().daemon:
        return _one_by_one(paths, count)
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            counts = list(pool.map(count, paths, chunksize=max(1, min(16, len(paths) // (4 * processes)))))
    except BrokenProcessPool:
        # Spawning imports the caller's script again, which a script without ``if __name__ == "__main__"`` (or one typed
        # into an interpreter) does not survive.
        return _one_by_one(paths, count)
    return [Source(path, found) for path, found in zip(paths, counts, strict=True)]


def _one_by_one(paths: Sequence[Path], count: Callable[[Path], int]) -> list[Source]:
    return [Source(path, count(path)) for path in paths]


def _cores() -> int:
    """Cores this process may use, which in a container may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
