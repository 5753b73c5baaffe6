"""Every call that changes a disk fails once, or is the last a process makes: what was there before stays, and is found."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shards.errors import CheckpointError
from tests.train.test_checkpoint import assert_holds, save, snapshot
from train.checkpoint import newest_checkpoint
from train.checkpoint_writer import CheckpointWriter, Retention, remove_leftovers

CALLS = ("write", "fsync", "replace", "unlink", "rmdir")
"""What a checkpoint is made with; each is looked up in ``os`` when it is called."""

BEFORE, AFTER = 5, 10


class Fault:
    """Counts the calls of ``os`` that change a disk, and acts at one of them."""

    def __init__(self, number: int | None, act: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self._number, self._act = number, act

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Whatever happens inside is counted."""
        real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._wrap(name, real[name]))
        try:
            yield
        finally:
            for name in CALLS:
                setattr(os, name, real[name])

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self._number:
                self._act()
            return call(*args, **kwargs)

        return counted


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_last_of_two(folder: Path, fault: Fault) -> None:
    """The second process has written; then the first writes its own, publishes, and removes the one before."""
    with CheckpointWriter(folder, rank=1, world_size=2, retention=Retention(1)) as writer:
        writer.save(lambda: snapshot(AFTER, rank=1, world_size=2))
    with fault.armed(), CheckpointWriter(folder, rank=0, world_size=2, retention=Retention(1)) as writer:
        writer.save(lambda: snapshot(AFTER, rank=0, world_size=2))


def count_calls(folder: Path) -> list[str]:
    """Of a save that nothing disturbs."""
    save(folder, BEFORE)
    fault = Fault(None, full)
    save_last_of_two(folder, fault)
    assert newest_checkpoint(folder) == folder / f"step-{AFTER:08d}"
    return fault.calls


def assert_whole(folder: Path) -> int:
    """The newest checkpoint holds what was saved under its name; its step."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    assert_holds(newest, step)
    return step


def test_a_call_that_fails_leaves_the_checkpoint_before_and_is_told(tmp_path: Path):
    """The disk is full at every call in turn: never half a checkpoint, and the next save raises what happened."""
    calls = count_calls(tmp_path / "count")
    assert {"write", "fsync", "replace"} <= set(calls) and len(calls) > 15, calls
    steps: list[int] = []
    for number in range(1, len(calls) + 1):
        folder = tmp_path / f"at-{number}"
        save(folder, BEFORE)
        with pytest.raises(CheckpointError, match=r"No space left on device.* GB are free there: make room") as told:
            save_last_of_two(folder, Fault(number, full))
        steps.append(assert_whole(folder))
        assert f"(step-{steps[-1]:08d} is whole, the run continues from it)" in str(told.value)
        remove_leftovers(folder)
        assert_holds(save(folder, AFTER, world_size=2), AFTER)
    published = calls.index("replace", calls.index("replace") + 1)
    assert steps == sorted(steps) and set(steps) == {BEFORE, AFTER}
    assert set(steps[: published - 1]) == {BEFORE}


def test_a_process_that_dies_at_any_call_leaves_the_checkpoint_before(tmp_path: Path):
    """SIGKILL at every call in turn, so files and folders are left at every stage."""
    calls = count_calls(tmp_path / "count")
    steps: list[int] = []
    for number in range(1, len(calls) + 1):
        folder = tmp_path / f"at-{number}"
        save(folder, BEFORE)
        process = os.fork()
        if process == 0:
            signal.alarm(60)
            save_last_of_two(folder, Fault(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        steps.append(assert_whole(folder))
        remove_leftovers(folder)
        assert_holds(save(folder, AFTER, world_size=2), AFTER)
        assert not list(folder.glob("*.tmp"))
    assert steps == sorted(steps) and set(steps) == {BEFORE, AFTER}


def test_what_fails_in_the_background_is_raised_by_the_next_save(tmp_path: Path):
    before = save(tmp_path, BEFORE)
    writer = CheckpointWriter(tmp_path)
    with Fault(1, full).armed():
        writer.save(lambda: snapshot(AFTER))
        with pytest.raises(CheckpointError, match="No space left on device"):
            writer.save(lambda: snapshot(AFTER + 5))
    assert newest_checkpoint(tmp_path) == before and not list(tmp_path.glob("*.tmp"))
    writer.save(lambda: snapshot(AFTER + 5))
    writer.wait()
    assert [report.step for report in writer.take_reports()] == [AFTER + 5]


def write_part(folder: Path, rank: int, **settings: Any) -> None:
    """What one process of several does."""
    world_size = settings.setdefault("world_size", 2)
    with CheckpointWriter(folder, rank=rank, **settings) as writer:
        writer.save(lambda: snapshot(AFTER, rank=rank, world_size=world_size))


def test_a_process_that_cannot_write_tells_the_first_at_once(tmp_path: Path):
    """Not after half an hour."""
    save(tmp_path, BEFORE)
    with pytest.raises(CheckpointError, match="No space left"), Fault(3, full).armed():
        write_part(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"rank-00001-of-00002 could not write its part: .*No space left"):
        write_part(tmp_path, 0)
    assert assert_whole(tmp_path) == BEFORE


def test_a_process_that_never_writes_is_waited_for_and_named(tmp_path: Path):
    save(tmp_path, BEFORE)
    write_part(tmp_path, 1, world_size=3)
    with pytest.raises(
        CheckpointError, match=r"files of 3 processes, after 0 s found none of rank-00002-of-00003; all"
    ):
        write_part(tmp_path, 0, world_size=3, timeout_s=0.1)
    assert assert_whole(tmp_path) == BEFORE


def test_what_a_killed_run_left_is_not_taken_for_todays(tmp_path: Path):
    """The other process's files are there, but of the start before: another token."""
    save(tmp_path, BEFORE)
    write_part(tmp_path, 1, token=1)
    with pytest.raises(CheckpointError, match="found none of rank-00001-of-00002"):
        write_part(tmp_path, 0, token=2, timeout_s=0.1)
    assert assert_whole(tmp_path) == BEFORE


def test_a_run_that_fails_still_gets_the_checkpoint_that_is_being_written(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path) as writer:
        writer.save(lambda: snapshot(AFTER))
        1 / 0  # noqa: B018
    assert assert_whole(tmp_path) == AFTER


def test_a_second_save_waits_for_the_first(tmp_path: Path):
    """So there is one copy: it is made when the one before is on the disk."""
    seen: list[Path | None] = []

    def copy(step: int) -> Any:
        seen.append(newest_checkpoint(tmp_path))
        return snapshot(step)

    with CheckpointWriter(tmp_path) as writer:
        for step in (5, 10, 15):
            writer.save(lambda step=step: copy(step))
    assert [path and path.name for path in seen] == [None, "step-00000005", "step-00000010"]
