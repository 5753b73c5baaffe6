"""Render the whole set, once: all corpora into a temporary sibling folder, a stamp last, then one rename.

The stamp holds the fingerprint of what was asked for (the config without ``output`` and ``workers``, the limit) and of
the code that answers it. The same command again finds the stamp and does nothing; after a kill at any point there is
either the old set, or none, or the new one, and never half of one.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.sample_corpora import anyinstruct, gigaspeech, journeydb, laion, mmc4, musical, spoken
from pipeline.sample_corpora.config import SampleCorporaConfig, Split
from pipeline.sample_corpora.items import ItemRecord, Task
from shards.errors import ConfigError

STAMP = "stamp.json"
ATTRIBUTES = "attributes.jsonl"

_LAYOUTS: dict[str, Callable[[Task], list[ItemRecord]]] = {
    "laion2b": laion.write,
    "laion_coco": laion.write,
    "laion_aesthetics": laion.write,
    "journeydb": journeydb.write,
    "mmc4_core_ff": mmc4.write,
    "mls": spoken.write_mls,
    "commonvoice": spoken.write_commonvoice,
    "gigaspeech": gigaspeech.write,
    "youtube_music": musical.write_youtube_music,
    "musiccaps": musical.write_musiccaps,
    "anyinstruct": anyinstruct.write,
}
# The slowest first, so that two processes end at about the same time.
_SLOWEST_FIRST = ("gigaspeech", "anyinstruct", "commonvoice", "mls", "youtube_music", "laion_coco", "journeydb")


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to write, and whether it is there already."""

    output: Path
    tasks: tuple[Task, ...]
    fingerprint: str
    is_done: bool


def plan_build(config: SampleCorporaConfig, *, limit: int | None = None) -> Plan:
    """The corpora with their counts, each at most ``limit``.

    Raises:
        ConfigError: the output folder holds something that this command did not write.
    """
    fingerprint = _fingerprint(config, limit)
    stamp = config.output / STAMP
    if config.output.exists() and not stamp.is_file() and not _is_empty_folder(config.output):
        raise ConfigError(
            f"output {config.output}: expected no folder or earlier sample corpora (with {STAMP}), found other files; "
            "name another folder with --set output=DIR, or remove this one"
        )
    is_done = stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")).get("fingerprint") == fingerprint
    return Plan(config.output, tuple(_tasks(config, limit)), fingerprint, is_done)


def build(plan: Plan, *, show_progress: bool = False) -> None:
    """Write everything the plan names; does nothing when it is done already."""
    if plan.is_done:
        return
    for leftover in plan.output.parent.glob(f"{glob.escape(plan.output.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # A name of our own: a worker of a killed run, should it still write, must not write here.
    partial = plan.output.with_name(f"{plan.output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    tasks = [dataclasses.replace(task, folder=partial / task.folder) for task in plan.tasks]
    records = dict(_run(tasks, show_progress=show_progress))
    (partial / ATTRIBUTES).write_text("".join(_lines(tasks, records)), encoding="utf-8")
    config = plan.tasks[0].config.model_dump(mode="json", exclude={"output", "workers"}) if plan.tasks else {}
    counts = {task.folder.relative_to(partial).as_posix(): task.count for task in tasks}
    stamp = {"fingerprint": plan.fingerprint, "counts": counts, "config": config}
    (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    _replace(plan.output, partial)


def _tasks(config: SampleCorporaConfig, limit: int | None) -> Iterator[Task]:
    for split, counts in ((Split.TRAIN, config.train), (Split.HELDOUT, config.heldout)):
        for corpus, count in counts.model_dump().items():
            # Relative to the output until it is known where the files are written.
            folder = Path(corpus) if split is Split.TRAIN else Path(split) / corpus
            wanted = count if limit is None else min(count, limit)
            if wanted:
                yield Task(corpus, split, wanted, folder, config)


def _run(tasks: list[Task], *, show_progress: bool) -> Iterator[tuple[Path, list[ItemRecord]]]:
    """The records of every task, by its folder, in the order of completion."""
    workers = min(tasks[0].config.workers, len(tasks)) if tasks else 1
    ordered = sorted(tasks, key=lambda task: _SLOWEST_FIRST.index(task.corpus) if task.corpus in _SLOWEST_FIRST else 99)
    with tqdm(total=sum(task.count for task in tasks), unit="items", disable=None if show_progress else True) as bar:
        if workers == 1:
            for task in ordered:
                yield _write(task)
                bar.update(task.count)
            return
        # Fresh interpreters: a fork would inherit the threads of whatever the caller has loaded.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            running = {pool.submit(_write, task): task for task in ordered}
            try:
                for done in as_completed(running):
                    yield done.result()
                    bar.update(running[done].count)
            finally:
                pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would otherwise wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(task: Task) -> tuple[Path, list[ItemRecord]]:
    task.folder.mkdir(parents=True)
    return task.folder, _LAYOUTS[task.corpus](task)


def _lines(tasks: list[Task], records: dict[Path, list[ItemRecord]]) -> Iterator[str]:
    for task in tasks:
        for record in records[task.folder]:
            line = {"corpus": task.corpus, "split": str(task.split)} | dataclasses.asdict(record)
            yield json.dumps(line) + "\n"


def _replace(output: Path, partial: Path) -> None:
    """Put the finished folder in its place; an earlier set steps aside first, since a rename needs an empty target."""
    aside = output.with_name(output.name + ".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if output.exists():
        output.rename(aside)
    partial.rename(output)
    shutil.rmtree(aside, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _fingerprint(config: SampleCorporaConfig, limit: int | None) -> str:
    """Of the request and of this package's sources: other code may render other bytes."""
    request = config.model_dump(mode="json", exclude={"output", "workers"}) | {"limit": limit}
    digest = hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=16)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
