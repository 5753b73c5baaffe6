"""The state of a run on disk: what a checkpoint is, which one is the newest, and how any machine reads it.

``checkpoints/step-00000200/`` holds ``state.json`` and the files of the processes that wrote it
(:mod:`train.checkpoint_files`); :mod:`train.checkpoint_writer` writes it under a temporary name, every file synced, then
renames it: a folder under its final name is whole, and one that is not (a disk that lied, a copy that was cut) is noticed
by its sizes and passed over for the one before it. Other bytes of the right number are noticed by their checksums.

Tensors go by parameter name and place in the flattened parameter, so a checkpoint does not bind its reader to the number of
processes, the ZeRO stage or the engine that wrote it: everyone asks :class:`StoredTensors` for the slices it needs. Weights
in lower precision are the rounding of the float32 master and not stored.

The position in the data is the step; nothing else has a state. No torch in this file: whether a run is finished is asked
before anything heavy is imported.
"""

from __future__ import annotations

import json
import math
import shutil
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shards.errors import CheckpointError, FingerprintMismatch
from shards.writer import TEMPORARY_SUFFIX, commit_file
from train.checkpoint_files import KINDS, MASTER, FileReader, Floats, StoredFile, rank_name, sync_folder

FORMAT_VERSION = 2
WHOLE_TENSORS_VERSION = 1
"""Before there were fragments: one file a kind, written by the first process. Still read."""

STATE_NAME = "state.json"
LATEST_NAME = "latest"

Tensors = Mapping[str, Floats]
Shape = tuple[int, ...]
_DATASET = "dataset "


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint says besides its tensors.

    Attributes:
        step: the last one done; the next one reads the rows after it.
        fingerprints: of everything a run must share with it to continue it.
        log: figures that were gathered and not yet written.
        config: resolved, for whoever looks into the folder.
    """

    step: int
    fingerprints: Mapping[str, str]
    log: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


class StateSource(Protocol):
    """Where an engine takes its state from.

    Attributes:
        step: how many updates the optimizer has made.
        shapes: of all trained parameters.
    """

    @property
    def step(self) -> int: ...  # noqa: D102

    @property
    def shapes(self) -> Mapping[str, Shape]: ...  # noqa: D102

    def read(self, kind: str, name: str, start: int, stop: int) -> Floats:
        """(stop - start,) values of a flattened parameter: master weights, or a moment of them."""
        ...


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """A state in memory: float32 arrays by parameter name, master weights and Adam's moments after ``step`` updates."""

    step: int
    master: Tensors
    exp_avg: Tensors
    exp_avg_sq: Tensors

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of all parameters."""
        return {name: array.shape for name, array in self.master.items()}

    def read(self, kind: str, name: str, start: int, stop: int) -> Floats:
        """See :class:`StateSource`."""
        return getattr(self, kind)[name].reshape(-1)[start:stop]


class StoredTensors:
    """The tensors of a checkpoint, read when they are asked for; a :class:`StateSource`.

    Raises:
        CheckpointError: the checkpoint is torn, or, when it is read, damaged.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        state = _whole_state(checkpoint)
        self.step: int = state["optimizer_step"]
        self.world_size: int = state.get("world_size", 1)
        """Processes that wrote it."""
        self._files = {name: FileReader(checkpoint / name, file) for name, file in _stored_files(state).items()}
        if state["format_version"] == WHOLE_TENSORS_VERSION:
            self.shapes, self._places = _shapes_of_whole(self._files), None
        else:
            self.shapes: Mapping[str, Shape] = {name: tuple(shape) for name, shape in state["shapes"].items()}
            names = sorted(self._files)
            self._places = {
                name: [(start, start + count, names[file]) for file, start, count in places]
                for name, places in state["fragments"].items()
            }

    def read(self, kind: str, name: str, start: int, stop: int) -> Floats:
        """See :class:`StateSource`."""
        if self._places is None:
            return self._files[f"{kind}.safetensors"].read(name, start, stop)
        places = self._places[name]
        parts: list[Floats] = []
        for begin, end, file in places[max(0, bisect_right(places, start, key=lambda place: place[0]) - 1) :]:
            if begin >= stop:
                break
            if end > start:
                reader = self._files[file]
                parts.append(reader.read(f"{kind}/{name}", max(start, begin) - begin, min(stop, end) - begin))
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.float32)])

    def damage(self, *, rank: int = 0, world_size: int = 1) -> str | None:
        """What is wrong with the bytes of a process's part of the files, if anything; together they read all of them."""
        for name in sorted(self._files)[rank::world_size]:
            try:
                self._files[name].check()
            except CheckpointError as error:
                return str(error)
        return None

    def random_states(self, rank: int) -> dict[str, npt.NDArray[np.uint8]]:
        """What :func:`train.engine_state.random_states` gave on that process, or nothing."""
        first = self._files.get(f"{rank_name(rank, self.world_size)}-000.safetensors")
        keys = [key for key in first.keys() if key.startswith("random/")] if first else []  # noqa: SIM118
        assert first is not None or not keys
        return {key: first.read(key, 0, math.prod(first.shape(key))) for key in keys} if first else {}


class MasterWeights(Mapping[str, Floats]):
    """Float32 weights of a checkpoint by parameter name, in their shapes; one parameter at a time is in memory."""

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Floats:
        """The whole parameter, read anew each time."""
        shape = self._stored.shapes[name]
        return self._stored.read(MASTER, name, 0, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the model."""
        return iter(self._stored.shapes)

    def __len__(self) -> int:
        """How many parameters."""
        return len(self._stored.shapes)


def read_master(checkpoint: Path) -> Mapping[str, Floats]:
    """The weights of a checkpoint, lazily: what an export writes, whoever trained them."""
    return MasterWeights(StoredTensors(checkpoint))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; torn ones are passed over."""
    return next(complete_checkpoints(folder), None)


def complete_checkpoints(folder: Path) -> Iterator[Path]:
    """Whole checkpoints, newest first."""
    candidates = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    for path in sorted(candidates, key=step_of, reverse=True):
        if _read_state(path) is not None:
            yield path


def checkpoint_name(step: int) -> str:
    """Of the folder; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def read_run_state(checkpoint: Path) -> RunState:
    """What :func:`newest_checkpoint`'s folder says besides its tensors."""
    data = _whole_state(checkpoint)
    return RunState(**{name: data[name] for name in RunState.__slots__})


def read_optimizer_state(checkpoint: Path) -> OptimizerState:
    """All tensors of a checkpoint, in memory at once; for small ones."""
    stored = StoredTensors(checkpoint)
    tensors = {
        kind: {
            name: stored.read(kind, name, 0, math.prod(shape)).reshape(shape) for name, shape in stored.shapes.items()
        }
        for kind in KINDS
    }
    return OptimizerState(stored.step, **tensors)


def check_same_run(
    checkpoint: Path, found: Mapping[str, str], expected: Mapping[str, str], *, allow: Collection[str] = ()
) -> list[str]:
    """Refuse to continue a run with another vocabulary, mixture, dataset, model or batch.

    Args:
        allow: names of fingerprints that may differ; ``dataset`` stands for those of all datasets.

    Returns:
        What differs and is allowed to.

    Raises:
        FingerprintMismatch: naming everything that differs and is not.
    """
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    allowed = [name for name in different if name in allow or (name.startswith(_DATASET) and "dataset" in allow)]
    refused = [name for name in different if name not in allowed]
    if refused:
        words = ", ".join(f'"{name}"' for name in refused)
        raise FingerprintMismatch(
            f"{checkpoint}: this run was started with another {', '.join(refused)}; "
            "give the run another output, or remove this folder to begin anew, "
            f"or go on all the same with --set 'resume.allow=[{words}]'"
        )
    return allowed


def publish_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, make it durable, and rename it to ``final``, replacing what is there."""
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in sorted(temporary.iterdir()):
        sync_folder(path)
    publish_written(temporary, final)


def publish_written(temporary: Path, final: Path) -> None:
    """Rename a folder whose files are synced to ``final``; what is there gives way at once or not at all."""
    sync_folder(temporary)
    old = final.with_name(f"{final.name}.old{TEMPORARY_SUFFIX}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    commit_file(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def _whole_state(checkpoint: Path) -> dict[str, Any]:
    data = _read_state(checkpoint)
    if data is None:
        raise CheckpointError(f"{checkpoint}: expected a whole checkpoint, found a torn one; remove it")
    return data


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    """``state.json``, or None if it or a file it names is missing or cut."""
    try:
        data = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        version = data["format_version"]
        if version in (WHOLE_TENSORS_VERSION, FORMAT_VERSION):
            files = _stored_files(data)
            return (
                data if all((checkpoint / name).stat().st_size == file.bytes for name, file in files.items()) else None
            )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    raise CheckpointError(
        f"{checkpoint}: expected checkpoint format {WHOLE_TENSORS_VERSION} or {FORMAT_VERSION}, found {version}; "
        "continue it with the release that wrote it"
    )


def _stored_files(state: Mapping[str, Any]) -> dict[str, StoredFile]:
    if state["format_version"] == WHOLE_TENSORS_VERSION:
        return {name: StoredFile(size) for name, size in state["files"].items()}
    return {name: StoredFile(**file, block_bytes=state["block_bytes"]) for name, file in state["files"].items()}


def _shapes_of_whole(files: Mapping[str, FileReader]) -> dict[str, Shape]:
    master = files[f"{MASTER}.safetensors"]
    return {name: master.shape(name) for name in master.keys()}  # noqa: SIM118
