"""Stage A: the units of all corpora of one call run through one pipeline in one Ray session, or in this process.

One row per unit: a decoding task maps it to a payload, an encoding actor maps that to committed files and a row of
counts. Ray brings back-pressure, retries of dead workers and, on a cluster, placement; what is done and what is not is
the ledger's word alone (:mod:`tokenize_jobs.ledger`), so the same call again does only what is missing. With
``workers = 0`` the same two stages run here, one unit after another: the same files, and none of the seconds in which Ray
is imported, is started, and starts workers that import torch each.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.filters.config import filter_facts
from pipeline.leave_out import LeaveOut
from pipeline.media import check_front_end, front_end_facts
from pipeline.tokenization import TOKENIZATION_VERSION
from pipeline.tokenizers.codecs import open_tokenizers
from shards.errors import ConfigError
from shards.ledger import FOLD_UNITS, Entry, fold_group, fold_ledger, read_entries, unit_name
from shards.left_out import join_parts
from shards.manifest import MANIFEST_NAME, write_manifest
from shards.output_lock import only_writer, remove_temporaries
from shards.records import FORMAT_VERSION
from shards.removal import finish_removals
from shards.summary import summarize
from tokenize_jobs.calibration import update_calibration
from tokenize_jobs.dataset_report import refresh_dataset_page, write_dataset_page
from tokenize_jobs.ledger import (
    check_facts,
    commit_facts,
    committed_entry,
    planned_entries,
)
from tokenize_jobs.listing import keep_listing
from tokenize_jobs.log import JobLog, log_path
from tokenize_jobs.plan import TokenizeConfig, Units, plan_units
from tokenize_jobs.progress import Progress
from tokenize_jobs.rejects import check_budget
from tokenize_jobs.report import make_manifest, read_report, write_report
from tokenize_jobs.stages import EncodeRow, Task, decode_row
from tokenize_jobs.timing import read_times
from tokenize_jobs.watchdog import remove_notes

# What decides where bytes go and who makes them, and never which bytes they are.
_MACHINE_KEYS = {"root", "output", "workers", "cluster", "budget"}
# Said better by the codecs' fingerprints and by the front end's own facts.
_SAID_ELSEWHERE = {"tokenizers", "fit", "media", "windows", "leave_out"}
_FILTER_FILES = {"boilerplate_file", "placeholders_file", "clip_model"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which units of a plan a call does; by default those that are missing.

    Attributes:
        only: numbers of units that are done whether they have an entry or not, and no others.
        retry: besides the missing ones, units with rejects, and of them the rejected inputs alone.
    """

    only: tuple[int, ...] = ()
    retry: bool = False


@dataclass(slots=True)
class Job:
    """One corpus of a call: what is to be made, and what is there.

    Attributes:
        facts: everything that decides the bytes of the dataset; ``fingerprint`` is theirs.
        is_done: (units,) bool; ``again`` are numbers of units whose entry is there but whose files are not.
        rejected: inputs rejected in the units that are done, by reason.
        todo: numbers of the units this call does.
        finished: nothing to do; manifest and report are there too.
    """

    config: TokenizeConfig
    facts: Mapping[str, Any]
    fingerprint: str
    units: Units
    choice: Choice
    is_done: npt.NDArray[np.bool_]
    again: npt.NDArray[np.int64]
    todo: npt.NDArray[np.int64]
    rejected: Counter[str]
    finished: bool

    @property
    def is_whole(self) -> bool:
        """Whether every unit is done."""
        return bool(self.is_done.all())

    @property
    def task(self) -> Task:
        """What workers know of it."""
        redo = bool(self.choice.only) or self.choice.retry
        return Task(self.config, self.fingerprint, self.units.sources_only(), redo=redo, retry=self.choice.retry)


def prepare_job(config: TokenizeConfig, *, limit: int | None = None, choice: Choice | None = None) -> Job:
    """Plan a corpus and look up what is done; writes nothing.

    Raises:
        ConfigError, CorpusError: the corpus cannot be read, or has no such unit.
        ConfigError: a codec is missing, or reads another sample rate than the config gives it.
        FingerprintMismatch, DatasetError: ``output`` holds something else.
    """
    choice = choice or Choice()
    units = plan_units(config, limit=limit)
    facts = collect_facts(config, limit=limit)
    fingerprint = check_facts(config.output, facts)
    is_done, has_rejects = np.zeros(len(units), bool), np.zeros(len(units), bool)
    rejected: Counter[str] = Counter()
    again: list[int] = []
    for entry, is_there in planned_entries(units, config.output, config.root, fingerprint):
        if not is_there:
            again.append(entry.number)
            continue
        is_done[entry.number] = True
        has_rejects[entry.number] = bool(entry.rejected)
        rejected.update(entry.rejected)
    todo = _choose(choice, is_done, has_rejects, config)
    is_written = (config.output / MANIFEST_NAME).is_file() and read_report(config.output) is not None
    finished = bool(is_done.all()) and not len(todo) and is_written
    return Job(config, facts, fingerprint, units, choice, is_done, np.array(again, np.int64), todo, rejected, finished)


def _choose(
    choice: Choice, is_done: npt.NDArray[np.bool_], has_rejects: npt.NDArray[np.bool_], config: TokenizeConfig
) -> npt.NDArray[np.int64]:
    if choice.only:
        numbers = np.unique(np.array(choice.only, np.int64))
        if numbers[-1] >= len(is_done):
            raise ConfigError(
                f"--only {unit_name(int(numbers[-1]))}: expected a unit of {config.dataset_name}, which has "
                f"{len(is_done)}, from {unit_name(0)} to {unit_name(len(is_done) - 1)}; --dry-run lists them"
            )
        return numbers
    return np.flatnonzero(~is_done | has_rejects if choice.retry else ~is_done)


def collect_facts(config: TokenizeConfig, *, limit: int | None = None) -> dict[str, Any]:
    """Everything that decides the bytes of a tokenized corpus, without a path of any machine."""
    codecs = open_tokenizers(config.tokenizers)
    check_front_end(config.media, codecs)
    left_out = dict.fromkeys(_MACHINE_KEYS | _SAID_ELSEWHERE, True)
    resolved = config.model_dump(mode="json", exclude={**left_out, "filters": _FILTER_FILES})
    return {
        "config": resolved | {"limit": limit},
        "filters": filter_facts(config.filters),
        "leave_out": LeaveOut.load(config.leave_out).fingerprint if config.leave_out else None,
        "tokenizers": {str(modality): codec.fingerprint for modality, codec in sorted(codecs.items())},
        "front_end": front_end_facts(config.media, config.windows, codecs.keys()),
        "versions": {"format": FORMAT_VERSION, "tokenization": TOKENIZATION_VERSION},
    }


def run_jobs(jobs: Sequence[Job]) -> dict[Path, dict[str, Any]]:
    """Do what is missing, all corpora in one pipeline; a corpus is finished as soon as its last unit is.

    Returns:
        The report of every corpus by its output; the stored one where nothing was to be done, none where units are left.
    """
    for job in jobs:
        if job.finished:
            refresh_dataset_page(job.config.output)
    open_jobs = [job for job in jobs if not job.finished]
    with ExitStack() as stack:
        logs: dict[Path, JobLog] = {}
        for job in open_jobs:
            stack.enter_context(only_writer(job.config.output))
            log = JobLog(corpus=job.config.dataset_name, output=job.config.output)
            logs[job.config.output] = stack.enter_context(log)
            _begin(job)
            log.begun(units=len(job.units), missing=len(job.todo), fingerprint=job.fingerprint, retry=job.choice.retry)
        started = time.monotonic()
        left = {job.config.output: len(job.todo) for job in open_jobs}
        for job in open_jobs:
            if not left[job.config.output] and job.is_whole:
                _finish(job, logs[job.config.output], time.monotonic() - started)
        for job, entry, row in _done_rows(open_jobs):
            logs[job.config.output].unit_done(entry, row)
            left[job.config.output] -= 1
            if not left[job.config.output] and job.is_whole:
                _finish(job, logs[job.config.output], time.monotonic() - started)
    reports = {job.config.output: read_report(job.config.output) for job in jobs if job.is_whole}
    return {output: report for output, report in reports.items() if report is not None}


def _begin(job: Job) -> None:
    """From here on the folder is no dataset until it is finished again."""
    remove_temporaries(job.config.output)
    finish_removals(job.config.output)
    (job.config.output / MANIFEST_NAME).unlink(missing_ok=True)
    commit_facts(job.config.output, job.facts)
    keep_listing(job.config, job.units.sources)
    fold_ledger(job.config.output)


def _done_rows(jobs: Sequence[Job]) -> Iterator[tuple[Job, Entry, dict[str, Any]]]:
    """Do all units that are to be done; one row each as it is committed, with its entry."""
    total = sum(len(job.todo) for job in jobs)
    if not total:
        return
    workers = min(max(job.config.workers for job in jobs), total)
    with (
        Progress(sum(len(job.units) for job in jobs), sum(len(job.units) - len(job.todo) for job in jobs)) as progress,
        closing(_pipeline(jobs, workers)) as rows,
    ):
        for row in rows:
            if row["error"]:
                raise pickle.loads(row["error"])
            job = jobs[int(row["task"])]
            entry = committed_entry(job.units[int(row["number"])], job.config.output)
            _count(job, entry)
            tokens = sum(entry.tokens.values())
            progress.unit(inputs=entry.inputs, tokens=tokens, busy_s=row["encode_s"], wait_s=row["wait_s"])
            yield job, entry, row


def _count(job: Job, entry: Entry) -> None:
    """Take a committed unit into account, and fold its group of the ledger when it was the last one."""
    if not job.is_done[entry.number]:
        job.rejected.update(entry.rejected)
        job.is_done[entry.number] = True
        first = entry.number - entry.number % FOLD_UNITS
        group = job.is_done[first : first + FOLD_UNITS]
        if len(group) == FOLD_UNITS and group.all():
            fold_group(job.config.output, first)
    _check_run_budget(job, job.rejected, job.units.num_items)


def _pipeline(jobs: Sequence[Job], workers: int) -> Generator[dict[str, Any]]:
    """Rows of counts in the order units are done; with no worker, this process does them."""
    rows = pa.concat_tables([job.units.to_table(job.todo, task=n, again=job.again) for n, job in enumerate(jobs)])
    tasks = [job.task for job in jobs]
    if not workers:
        encode = EncodeRow(tasks)
        yield from (encode(decode_row(row, tasks)) for row in rows.to_pylist())
        return
    # Ray takes seconds to import and start; what needs none of it does not wait for it.
    from tokenize_jobs.ray_stages import run_rows
    from tokenize_jobs.session import ray_session

    cluster = jobs[0].config.cluster
    with ray_session(workers=workers, address=cluster.address):
        yield from run_rows(rows, decode_row, EncodeRow, tasks, cluster=cluster, workers=workers)


def _check_run_budget(job: Job, rejected: Mapping[str, int], inputs: int) -> None:
    where = f"{job.config.output}: {job.config.dataset_name}"
    check_budget(rejected, inputs, share=job.config.budget.run_share, where=where, key="budget.run_share")


def _finish(job: Job, log: JobLog, seconds: float) -> None:
    """Fold the ledger, join the units' parts, write the report, and the manifest last."""
    config = job.config
    fold_ledger(config.output)
    summary = summarize(read_entries(config.output))
    _check_run_budget(job, summary.sums["rejected"], summary.sums["inputs"])
    join_parts(summary.parts(config.output), config.output)
    times = read_times(log_path(config.output))
    cluster = config.cluster
    report = write_report(
        config.output,
        summary.sums,
        seconds=seconds,
        times=times,
        gpus_per_encoder=cluster.encode_gpus,
        usd_per_hour=cluster.usd_per_hour,
    )
    remove_temporaries(config.output)
    remove_notes(config.output)
    manifest = make_manifest(
        config.dataset_name,
        summary,
        fingerprint=job.fingerprint,
        facts=job.facts,
        tokenizers=job.facts["tokenizers"],
    )
    write_dataset_page(config.output, manifest, report, times=times)
    write_manifest(config.output, manifest)
    update_calibration(config.output, job.facts["tokenizers"])
    log.finished(report)
