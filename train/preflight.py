"""What is looked at before a run costs anything: one line a check, ``ok``, ``warn`` or ``fail``, with what to do.

At every start it takes well under a second for what is local, prints nothing but warnings, and refuses to start when a
check fails. ``anygpt-train CONFIG --preflight`` prints all lines, looks at every file, and takes one step with the real
engine (:mod:`train.trial`), which is thrown away. ``--set 'preflight.skip=["disk"]'`` leaves checks out.

The first process looks at files, fingerprints, disk and clock; the first of every machine at the machine's memory; each at
its own GPU's.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import AnyGPTError, ConfigError, DatasetError, FingerprintMismatch
from shards.reader import PackedDataset, check_size
from shards.storage import is_remote, list_files
from shards.verify import sampled
from train.bill import layout_of, memory_of
from train.checkpoint import check_same_run, complete_checkpoints, newest_checkpoint, read_run_state
from train.memory import GIB, RESERVE_GIB, trained_parameters
from train.outline import outline_run
from train.plan import Plan, check_process_count
from train.shape import Shape

STATE_BYTES = 12
"""Of a trained parameter in a checkpoint: float32 master weight and two moments."""

EXPORTED_BYTES = 2
FILES_AT_START = 500
"""Shards of a dataset whose size is looked at, at every start; ``--preflight`` looks at all."""

TOLERANCE = 0.9
"""A plan of memory is good to a tenth; what is missed by less is a warning."""

CLOCK_S = 60.0
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        message: with what to do, where something is wrong.
        error: for a failure that has a kind of its own.
    """

    check: str
    level: Level
    message: str
    error: type[AnyGPTError] = ConfigError

    def __str__(self) -> str:
        """One line."""
        return f"{self.level:<5}{self.check:<14}{self.message}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among the others."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> Place:
        """As torchrun and its like describe it; one process where nothing does."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        return cls(int(os.environ.get("RANK", "0")), world_size, int(os.environ.get("LOCAL_RANK", "0")), local)


def check_before_start(plan: Plan, say: Callable[[str], object]) -> None:
    """Look before every start.

    Raises:
        ConfigError: a check failed; names keys and fixes.
        FingerprintMismatch: the newest checkpoint is of another run.
    """
    findings = look(plan, Place.from_environment())
    for finding in findings:
        if finding.level == "warn":
            say(str(finding))
    refuse(plan, findings)


def refuse(plan: Plan, findings: list[Finding]) -> None:
    """Raise what failed, if anything did."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return
    kinds = {finding.error for finding in failed}
    names = ", ".join(f'"{finding.check}"' for finding in failed)
    message = "; ".join(finding.message for finding in failed)
    if FingerprintMismatch not in kinds:
        message += f"; or start all the same with --set 'preflight.skip=[{names}]'"
    raise (kinds.pop() if len(kinds) == 1 else ConfigError)(f"{plan.config.output}: {message}")


def look(plan: Plan, place: Place, *, thorough: bool = False) -> list[Finding]:
    """All checks of this process that the config does not skip, in the order of their cost."""
    checks: dict[str, Callable[[], Finding]] = {"processes": lambda: _processes(plan, place)}
    if place.rank == 0:
        checks["fingerprints"] = lambda: _fingerprints(plan)
        checks["files"] = lambda: _files(plan, thorough=thorough)
        checks["disk"] = lambda: _disk(plan)
        checks["clock"] = lambda: _clock(plan, megabytes=64 if thorough else 1)
    checks["memory"] = lambda: _memory(plan, place)
    wanted = [check for name, check in checks.items() if name not in plan.config.preflight.skip]
    return [check() for check in wanted]


def _processes(plan: Plan, place: Place) -> Finding:
    try:
        check_process_count(plan.config, place.world_size)
    except ConfigError as error:
        return Finding("processes", "fail", str(error))
    rows = plan.config.batch_rows // place.world_size
    return Finding("processes", "ok", f"{place.world_size}, {rows} rows of every batch each")


def _fingerprints(plan: Plan) -> Finding:
    checkpoint = newest_checkpoint(plan.checkpoints)
    if checkpoint is None:
        return Finding("fingerprints", "ok", "no checkpoint: a new run")
    run = read_run_state(checkpoint)
    try:
        differs = check_same_run(
            plan.checkpoints, run.fingerprints, plan.fingerprints_at(run.step), allow=plan.config.resume.allow
        )
    except FingerprintMismatch as error:
        return Finding("fingerprints", "fail", str(error), FingerprintMismatch)
    if differs:
        return Finding("fingerprints", "warn", f"{checkpoint.name} is continued with another {', '.join(differs)}")
    return Finding("fingerprints", "ok", f"{checkpoint.name} is of this run")


def _files(plan: Plan, *, thorough: bool) -> Finding:
    looked = 0
    for name, dataset in zip(plan.mixture.names, plan.datasets, strict=True):
        entries = sampled(dataset.manifest.shards, None if thorough else FILES_AT_START)
        try:
            looked += len(entries)
            if is_remote(dataset.folder):
                _check_remote(dataset, thorough=thorough)
                continue
            for entry in entries:
                check_size(dataset.folder / entry.path, entry)
        except AnyGPTError as error:
            return Finding("files", "fail", f"key 'data': dataset {name}: {error}", DatasetError)
    return Finding("files", "ok", f"{len(plan.datasets)} datasets, {looked:,} shards of the right size")


def _check_remote(dataset: PackedDataset, *, thorough: bool) -> None:
    """One listing of the bucket; at a start the manifest, which was just read, has to do."""
    if not thorough:
        return
    sizes = list_files(dataset.folder)
    for entry in dataset.manifest.shards:
        if sizes.get(entry.path) != entry.num_bytes:
            raise DatasetError(
                f"{dataset.folder / entry.path}: expected {entry.num_bytes:,} bytes, found {sizes.get(entry.path, 'none')}; "
                "copy the shard again"
            )


def _disk(plan: Plan) -> Finding:
    config = plan.config
    one = STATE_BYTES * _trained(plan)
    last = config.steps // config.checkpoint.keep_every if config.checkpoint.keep_every else 0
    copies = config.checkpoint.keep + 1 + last
    there = sum(1 for _ in complete_checkpoints(plan.checkpoints))
    needed = max(1, copies - there) * one + EXPORTED_BYTES * plan.shape.num_parameters
    folder = _existing(config.output)
    free = shutil.disk_usage(folder).free
    have = f"{copies} checkpoints of {one / 1e9:.3g} GB and the model, {needed / 1e9:.3g} GB still to write"
    if free < needed:
        message = f"key 'output': expected room for {have}, found {free / 1e9:.3g} GB free in {folder}"
        return Finding("disk", "fail", f"{message}; free some, give another output, or lower checkpoint.keep")
    return Finding("disk", "ok", f"{have}; {free / 1e9:.3g} GB free")


def _clock(plan: Plan, *, megabytes: int) -> Finding:
    """Write a little into the output folder: can it be written, how fast, and is its clock this machine's."""
    probe = plan.config.output / f".preflight-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        with probe.open("wb") as file:
            file.write(bytes(megabytes << 20))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - begun
        skew = abs(probe.stat().st_mtime - time.time())
    except OSError as error:
        message = f"key 'output': expected a folder that can be written, found {error}; give another output"
        return Finding("clock", "fail", message)
    finally:
        with suppress(OSError):
            probe.unlink()
    speed = megabytes * 1.048576e6 / seconds
    took = f"output written at {speed / 1e6:,.0f} MB/s, a checkpoint in {STATE_BYTES * _trained(plan) / speed:,.0f} s"
    if skew > CLOCK_S:
        message = f"{took}; its clock differs by {skew:,.0f} s from this machine's: set both by one time server"
        return Finding("clock", "warn", message)
    return Finding("clock", "ok", took)


def _memory(plan: Plan, place: Place) -> Finding:
    if not isinstance(plan.shape, Shape):
        return Finding("memory", "ok", "not planned for this objective")
    import torch

    gpu = torch.cuda.is_available()
    outline = outline_run(plan.config, where=str(plan.config.output))
    memory = memory_of(outline, layout_of(outline, place.world_size, gpu=gpu))
    planned = memory.peak
    size = 2 if plan.config.engine.dtype == "bf16" else 4
    # Every process makes or reads the whole network, and holds its part of a checkpoint while that is written.
    start = (size if plan.config.init.folder else 4) * plan.shape.num_parameters
    staged = STATE_BYTES * _trained(plan) / place.world_size
    each = max(start, staged + memory.host) if gpu else max(start, planned + memory.host) + staged
    host = place.local_world_size * each
    finding = _compare("host", host, free_memory(), "start fewer processes on a machine, or lower micro_batch_rows")
    if gpu and finding.level == "ok":
        free = torch.cuda.mem_get_info(place.local_rank)[0]
        reserve = RESERVE_GIB * GIB
        fix = "engine.micro_batch_rows = 1, engine.activation_checkpointing = true or engine.zero = 3 take less"
        return _compare(f"GPU {place.local_rank}", planned + reserve, free, fix)
    return finding


def _compare(what: str, planned: float, free: float, fix: str) -> Finding:
    numbers = f"{what}: {planned / GIB:.2f} GiB planned, {free / GIB:.2f} free"
    if planned * TOLERANCE > free:
        return Finding("memory", "fail", f"key 'engine.micro_batch_rows': {numbers}; {fix}")
    if planned > free:
        return Finding("memory", "warn", f"{numbers}, which may just do; {fix}")
    return Finding("memory", "ok", numbers)


def free_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    lines = Path("/proc/meminfo")
    if not lines.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in lines.read_text(encoding="utf-8").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        cached = _cached(group / "memory.stat")
        free = min(free, int(most) - int(used.read_text(encoding="utf-8")) + cached)
    return free


def _cached(path: Path) -> int:
    """Bytes of files in memory, which give way."""
    if not path.is_file():
        return 0
    fields = dict(line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def _trained(plan: Plan) -> int:
    if isinstance(plan.shape, Shape):
        return trained_parameters(plan.shape, plan.config.lora)
    return plan.shape.num_parameters


def _existing(folder: Path) -> Path:
    """The folder, or what it will lie in."""
    return next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
