"""Writing checkpoints beside the training: a thread on every process, markers in place of collectives.

Each process's thread writes its fragments into ``step-N.TOKEN.tmp/``, syncs them, and leaves ``rank-K-of-W.json``, which
says what it wrote. The first process's thread waits for all of these, checks that the fragments make up every parameter,
writes ``state.json``, renames the folder, points ``latest`` at it and removes old checkpoints. No process talks to another
but through the folder, so nothing here can hold up a collective of the training; all machines must see the same folder.

TOKEN is a number the processes of one start share, so what a killed run left behind is never taken for today's. One
checkpoint is written at a time: a second one waits. An error in the thread is raised by the next call, with the path and
the cause; the checkpoints from before stay.

Even the copy is made in the thread. Master weights and moments change in the update alone, so the passes of the next step
go on beside it, and :meth:`CheckpointWriter.wait_for_copy` holds the update back until it is done.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from shards.errors import CheckpointError
from shards.writer import TEMPORARY_SUFFIX, commit_bytes
from train.checkpoint import (
    FORMAT_VERSION,
    LATEST_NAME,
    STATE_NAME,
    RunState,
    Shape,
    checkpoint_name,
    complete_checkpoints,
    newest_checkpoint,
    publish_written,
    step_of,
)
from train.checkpoint_files import (
    BLOCK_BYTES,
    FILE_BYTES,
    Fragment,
    Written,
    rank_name,
    sync_folder,
    write_fragments,
    write_pieces,
)

_POLL_S = 0.02
_LAST_POLL_S = 1.0
_NICENESS = 10
_GRACE_S = 20.0
"""How long a run that has failed still waits for the other processes to finish a checkpoint."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one process holds of a checkpoint, in host memory; nobody changes it until it is written.

    Attributes:
        shapes: of all parameters, in the order of the model, on every process.
        random: torch's random states, by key.
    """

    run: RunState
    optimizer_step: int
    shapes: Mapping[str, Shape]
    fragments: Sequence[Fragment]
    random: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict[str, npt.NDArray[np.uint8]])


@dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints stay: the newest ``keep``, and those of every ``keep_every``-th step for good."""

    keep: int = 2
    keep_every: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A checkpoint that was published.

    Attributes:
        stall_s: how long the training waited: for the checkpoint before, and for the copy.
        seconds: how long copy and writing took beside it.
    """

    path: Path
    step: int
    bytes: int
    stall_s: float
    seconds: float


class CheckpointWriter:
    """A context manager; leaving it waits for what is being written.

    Args:
        folder: of all checkpoints of the run.
        token: the same on all processes of this start, another at the next.
        timeout_s: how long the first process waits for the files of the others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        token: int = 0,
        retention: Retention = Retention(),
        timeout_s: float = 1800.0,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._folder, self._rank, self._world_size, self._token = folder, rank, world_size, token
        self._retention, self._timeout_s, self._file_bytes = retention, timeout_s, file_bytes
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._copied, self._hurry = threading.Event(), threading.Event()
        self._copied.set()
        self._stall_s = 0.0
        self._reports: list[Report] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, Exception) and self._thread is not None:
            # What the run failed of is told; a checkpoint that is nearly there is still worth having.
            self._hurry.set()
            self._thread.join()

    def save(self, copy: Callable[[], Snapshot]) -> None:
        """Begin to copy and to write in the background; the caller waits for the copy before it changes anything.

        Args:
            copy: called in the background, when the checkpoint before is written: there is one copy at a time.

        Raises:
            CheckpointError: the one before could not be written.
        """
        begun = time.perf_counter()
        self.wait()
        self._copied.clear()
        # A daemon: a second Ctrl-C ends the process at once, and leaves a temporary folder.
        self._thread = threading.Thread(target=self._run, args=(copy,), name="checkpoint", daemon=True)
        self._thread.start()
        self._stall_s = time.perf_counter() - begun

    def wait_for_copy(self) -> None:
        """Return when what is to be saved may change again."""
        if not self._copied.is_set():
            begun = time.perf_counter()
            self._copied.wait()
            self._stall_s += time.perf_counter() - begun

    def wait(self) -> None:
        """Return when nothing is being written by this process any more.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def take_reports(self) -> list[Report]:
        """Checkpoints that were published since the last call; on the first process only."""
        reports, self._reports = self._reports, []
        return reports

    def _run(self, copy: Callable[[], Snapshot]) -> None:
        begun = time.perf_counter()
        try:
            try:
                snapshot = copy()
            finally:
                self._copied.set()
            _step_back()
            self._write(snapshot, begun)
        except Exception as error:  # noqa: BLE001 - the border of the thread: raised by the next wait()
            self._error = error

    def _write(self, snapshot: Snapshot, begun: float) -> None:
        name = checkpoint_name(snapshot.run.step)
        temporary = self._folder / f"{name}.{self._token:x}{TEMPORARY_SUFFIX}"
        try:
            _write_own(temporary, snapshot, self._rank, self._world_size, self._file_bytes)
            if self._rank == 0:
                written = self._await_all(temporary)
                size = _publish(temporary, self._folder / name, snapshot, written)
                _remove_old(self._folder, self._retention)
                seconds = time.perf_counter() - begun
                self._reports.append(Report(self._folder / name, snapshot.run.step, size, self._stall_s, seconds))
        except (OSError, CheckpointError) as error:
            self._give_up(temporary, error)
            raise CheckpointError(_explain(self._folder, temporary, error)) from error

    def _await_all(self, temporary: Path) -> list[Written]:
        """What every process wrote, in their order."""
        names = [rank_name(rank, self._world_size) for rank in range(self._world_size)]
        begun, pause = time.monotonic(), _POLL_S
        while True:
            found = {path.name for path in temporary.iterdir()}
            failed = [name for name in names if f"{name}.failed" in found]
            if failed:
                reason = (temporary / f"{failed[0]}.failed").read_text(encoding="utf-8")
                raise CheckpointError(f"{failed[0]} could not write its part: {reason}")
            missing = [name for name in names if f"{name}.json" not in found]
            if not missing:
                texts = [(temporary / f"{name}.json").read_text(encoding="utf-8") for name in names]
                return [Written.from_json(json.loads(text)) for text in texts]
            waited = time.monotonic() - begun
            if waited > (min(_GRACE_S, self._timeout_s) if self._hurry.is_set() else self._timeout_s):
                raise CheckpointError(
                    f"expected the files of {self._world_size} processes, after {waited:.0f} s found none of "
                    f"{', '.join(missing[:5])}; all machines must see the same folder, or raise checkpoint.timeout_s"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LAST_POLL_S)

    def _give_up(self, temporary: Path, error: Exception) -> None:
        """Make room, and tell the first process; whatever fails here leaves a temporary folder and no more."""
        name = rank_name(self._rank, self._world_size)
        try:
            if self._world_size == 1:
                shutil.rmtree(temporary)
                return
            for path in temporary.glob(f"{name}*"):
                path.unlink(missing_ok=True)
            # Under another name first: the first process must not read half a reason.
            written = temporary / f"{name}.writing"
            written.write_text(str(error), encoding="utf-8")
            written.replace(temporary / f"{name}.failed")
        except OSError:
            return


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run has left; on the first process, before any other one begins to write."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _step_back() -> None:
    """From now on the training goes first where cores are few; the copy did not, since an update waits for it."""
    if sys.platform == "linux":  # where a priority is that of a thread
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _write_own(temporary: Path, snapshot: Snapshot, rank: int, world_size: int, file_bytes: int) -> None:
    temporary.mkdir(parents=True, exist_ok=True)
    written = write_fragments(
        temporary, snapshot.fragments, rank=rank, world_size=world_size, more=snapshot.random, file_bytes=file_bytes
    )
    _commit(temporary / f"{rank_name(rank, world_size)}.json", json.dumps(written.to_json()))


def _publish(temporary: Path, final: Path, snapshot: Snapshot, written: Sequence[Written]) -> int:
    """Complete a checkpoint whose files are all there; bytes of its tensors."""
    files = {name: file for one in written for name, file in one.to_json()["files"].items()}
    run = snapshot.run
    state: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": run.step,
        "optimizer_step": snapshot.optimizer_step,
        "world_size": len(written),
        "fingerprints": dict(run.fingerprints),
        "log": dict(run.log),
        "config": dict(run.config),
        "shapes": {name: list(shape) for name, shape in snapshot.shapes.items()},
        "block_bytes": BLOCK_BYTES,
        "files": files,
        "fragments": _places(snapshot.shapes, written, sorted(files)),
    }
    # A line a key: for people, and without a line for each of a million numbers.
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in state.items())
    write_pieces(temporary / STATE_NAME, [f"{{\n{lines}\n}}\n".encode()])
    for rank in range(len(written)):
        (temporary / f"{rank_name(rank, len(written))}.json").unlink()
    publish_written(temporary, final)
    commit_bytes(final.parent / LATEST_NAME, f"{final.name}\n".encode())
    return sum(file["bytes"] for file in files.values())


def _places(
    shapes: Mapping[str, Shape], written: Sequence[Written], files: Sequence[str]
) -> dict[str, list[tuple[int, int, int]]]:
    """File, start and count of every fragment, in order; they make up each parameter without gap or overlap."""
    number = {name: index for index, name in enumerate(files)}
    places: dict[str, list[tuple[int, int, int]]] = {name: [] for name in shapes}
    for one in written:
        for name, (file, start, count) in one.places.items():
            places[name].append((number[file], start, count))
    for name, found in places.items():
        found.sort(key=lambda place: place[1])
        stop = 0
        for _, start, count in found:
            assert start == stop, f"{name}: a fragment begins at {start}, the one before ends at {stop}"
            stop = start + count
        assert stop == np.prod(shapes[name], dtype=np.int64), f"{name}: fragments end at {stop} of {shapes[name]}"
    return places


def _remove_old(folder: Path, retention: Retention) -> None:
    """All but those that stay; under a temporary name first, so that a kill leaves no half one under a final name."""
    for old in list(complete_checkpoints(folder))[retention.keep :]:
        if retention.keep_every is None or step_of(old) % retention.keep_every:
            leaving = old.with_name(f"{old.name}.old{TEMPORARY_SUFFIX}")
            old.replace(leaving)
            shutil.rmtree(leaving)


def _commit(path: Path, text: str) -> None:
    """A small file that is whole as soon as it is there."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    write_pieces(temporary, [text.encode()])
    temporary.replace(path)
    sync_folder(path.parent)


def _explain(folder: Path, temporary: Path, error: Exception) -> str:
    reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) and error.filename else str(error)
    advice = "free the cause"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = os.statvfs(folder)
        advice = f"{free.f_bavail * free.f_frsize / 1e9:.1f} GB are free there: make room, or lower checkpoint.keep"
    try:
        last = newest_checkpoint(folder)
    except CheckpointError:
        last = None
    stays = f"{last.name} is whole, the run continues from it" if last else "there is no whole one before it"
    return f"{temporary}: could not write the checkpoint: {reason}; {advice} and run again ({stays})"
