"""One Ray for all tests of a process that need no other: starting one takes longer than what most of them do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

# Ray's workers stand back for everything else that runs (nice 15); here a test waits for them and for nothing else.
os.environ.setdefault("RAY_worker_niceness", "0")


class SharedRay:
    """Two CPUs; started when a test first asks for it, and again after one that had to have Ray to itself."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._is_open = False

    def open(self) -> None:
        if self._is_open:
            return
        from tokenize_jobs.session import ray_session

        self._open.enter_context(ray_session(workers=2))
        self._is_open = True

    def close(self) -> None:
        self._open.close()
        self._is_open = False


@pytest.fixture(scope="session")
def _shared_ray() -> Iterator[SharedRay]:
    shared = SharedRay()
    yield shared
    shared.close()


@pytest.fixture
def ray_of_this_process(_shared_ray: SharedRay) -> None:
    """A Ray is open; commands that ask for one use it."""
    _shared_ray.open()


@pytest.fixture(scope="module")
def no_ray_here(_shared_ray: SharedRay) -> None:
    """No Ray is open: the module starts its own, or must have none."""
    _shared_ray.close()
