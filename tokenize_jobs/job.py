"""Stage A on Ray Data: the units of all corpora of one call run through one pipeline in one Ray session.

One row per unit: a decoding task maps it to a payload, an encoding actor maps that to committed files and a row of
counts. Ray brings back-pressure, retries of dead workers and, on a cluster, placement; what is done and what is not is
the ledger's word alone (:mod:`tokenize_jobs.ledger`), so the same call again does only what is missing.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ray.data
from tqdm import tqdm

from pipeline.media import check_front_end, front_end_facts
from pipeline.tokenization import TOKENIZATION_VERSION
from pipeline.tokenizers.codecs import open_tokenizers
from shards.manifest import MANIFEST_NAME, write_manifest
from shards.records import FORMAT_VERSION
from tokenize_jobs.ledger import (
    Entry,
    check_facts,
    check_no_strangers,
    commit_facts,
    only_writer,
    read_entry,
    remove_temporaries,
)
from tokenize_jobs.log import JobLog
from tokenize_jobs.plan import TokenizeConfig, Unit, plan_units
from tokenize_jobs.rejects import check_budget, join_parts
from tokenize_jobs.report import make_manifest, read_report, summarize, write_report
from tokenize_jobs.session import ray_session
from tokenize_jobs.stages import EncodeRow, Task, decode_row

# What decides where bytes go and who makes them, and never which bytes they are.
_MACHINE_KEYS = {"root", "output", "workers", "cluster", "budget"}
# Said better by the codecs' fingerprints and by the front end's own facts.
_SAID_ELSEWHERE = {"tokenizers", "fit", "media", "windows"}


@dataclass(frozen=True, slots=True)
class Job:
    """One corpus of a call: what is to be made, and what is there.

    Attributes:
        facts: everything that decides the bytes of the dataset; ``fingerprint`` is theirs.
        done: unit number -> its entry.
        finished: manifest and report are there too.
    """

    config: TokenizeConfig
    facts: Mapping[str, Any]
    fingerprint: str
    units: tuple[Unit, ...]
    done: dict[int, Entry] = field(default_factory=dict[int, Entry])
    finished: bool = False

    @property
    def missing(self) -> list[Unit]:
        """Units that have to be done."""
        return [unit for unit in self.units if unit.number not in self.done]

    @property
    def task(self) -> Task:
        """What workers know of it."""
        return Task(self.config, self.fingerprint)


def prepare_job(config: TokenizeConfig, *, limit: int | None = None) -> Job:
    """Plan a corpus and look up what is done; writes nothing.

    Raises:
        ConfigError, CorpusError: the corpus cannot be read.
        ConfigError: a codec is missing, or reads another sample rate than the config gives it.
        FingerprintMismatch, DatasetError: ``output`` holds something else.
    """
    units = tuple(plan_units(config, limit=limit))
    facts = collect_facts(config, limit=limit)
    fingerprint = check_facts(config.output, facts)
    check_no_strangers(config.output, units)
    entries = {unit.number: read_entry(unit, config.output, config.root, fingerprint) for unit in units}
    done = {number: entry for number, entry in entries.items() if entry is not None}
    finished = len(done) == len(units) and (config.output / MANIFEST_NAME).is_file()
    return Job(config, facts, fingerprint, units, done, finished and read_report(config.output) is not None)


def collect_facts(config: TokenizeConfig, *, limit: int | None = None) -> dict[str, Any]:
    """Everything that decides the bytes of a tokenized corpus, without a path of any machine."""
    codecs = open_tokenizers(config.tokenizers)
    check_front_end(config.media, codecs)
    return {
        "config": config.model_dump(mode="json", exclude=_MACHINE_KEYS | _SAID_ELSEWHERE) | {"limit": limit},
        "tokenizers": {str(modality): codec.fingerprint for modality, codec in sorted(codecs.items())},
        "front_end": front_end_facts(config.media, config.windows, codecs.keys()),
        "versions": {"format": FORMAT_VERSION, "tokenization": TOKENIZATION_VERSION},
    }


def run_jobs(jobs: Sequence[Job]) -> dict[Path, dict[str, Any]]:
    """Do what is missing, all corpora in one pipeline; a corpus is finished as soon as its last unit is.

    Returns:
        The report of every corpus by its output; the stored one where nothing was to be done.
    """
    open_jobs = [job for job in jobs if not job.finished]
    with ExitStack() as stack:
        logs: dict[Path, JobLog] = {}
        for job in open_jobs:
            stack.enter_context(only_writer(job.config.output))
            log = JobLog(corpus=job.config.dataset_name, output=job.config.output)
            logs[job.config.output] = stack.enter_context(log)
            _begin(job)
            log.begun(units=len(job.units), missing=len(job.missing))
        started = time.monotonic()
        for job in open_jobs:
            if not job.missing:
                _finish(job, logs[job.config.output], time.monotonic() - started)
        for job, row in _done_rows(open_jobs):
            logs[job.config.output].unit_done(
                job.units[int(row["number"])], job.done[int(row["number"])], row["busy_s"]
            )
            if not job.missing:
                _finish(job, logs[job.config.output], time.monotonic() - started)
    reports = {job.config.output: read_report(job.config.output) for job in jobs}
    return {output: report for output, report in reports.items() if report is not None}


def _begin(job: Job) -> None:
    """From here on the folder is no dataset until it is finished again."""
    remove_temporaries(job.config.output)
    (job.config.output / MANIFEST_NAME).unlink(missing_ok=True)
    commit_facts(job.config.output, job.facts)


def _done_rows(jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run all missing units; one row each as it is committed, its entry put into ``job.done``."""
    rows = [{"task": number, **unit.to_row()} for number, job in enumerate(jobs) for unit in job.missing]
    if not rows:
        return
    total = sum(len(job.units) for job in jobs)
    workers = min(max(job.config.workers for job in jobs), len(rows))
    cluster = jobs[0].config.cluster
    with (
        tqdm(total=total, initial=total - len(rows), unit="unit", desc="tokenize", disable=None) as progress,
        ray_session(workers=workers, address=cluster.address),
    ):
        rejected = [_rejected_so_far(job) for job in jobs]
        for row in _pipeline(rows, jobs, workers):
            if row["error"]:
                raise pickle.loads(row["error"])
            job = jobs[int(row["task"])]
            unit = job.units[int(row["number"])]
            entry = read_entry(unit, job.config.output, job.config.root, job.fingerprint)
            assert entry is not None, (
                f"{unit.name}: committed by its worker, not seen here; is {job.config.output} shared?"
            )
            job.done[unit.number] = entry
            rejected[int(row["task"])].update(entry.rejected)
            _check_run_budget(job, rejected[int(row["task"])], sum(unit.num_items for unit in job.units))
            progress.update()
            yield job, row


def _pipeline(rows: Sequence[dict[str, Any]], jobs: Sequence[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Rows of counts in the order units are done. Equal resources let Ray fuse both stages into one process."""
    tasks = [job.task for job in jobs]
    cluster = jobs[0].config.cluster
    # With few units none may queue behind a busy worker while another is idle; with many, queueing hides the round trip.
    in_flight = 1 if len(rows) < 8 * workers else None
    units = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    # Ray's annotations know functions of a row alone, neither their keyword arguments nor callable classes.
    decode, encode = cast(Any, decode_row), cast(Any, EncodeRow)
    decoded = units.map(decode, fn_kwargs={"tasks": tasks}, num_cpus=cluster.decode_cpus)
    encoded = decoded.map(
        encode,
        fn_constructor_args=(tasks,),
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=in_flight),
        num_cpus=cluster.encode_cpus,
        num_gpus=cluster.encode_gpus or None,
    )
    yield from encoded.iter_rows()


def _rejected_so_far(job: Job) -> Counter[str]:
    total: Counter[str] = Counter()
    for entry in job.done.values():
        total.update(entry.rejected)
    return total


def _check_run_budget(job: Job, rejected: Mapping[str, int], inputs: int) -> None:
    where = f"{job.config.output}: {job.config.dataset_name}"
    check_budget(rejected, inputs, share=job.config.budget.run_share, where=where, key="budget.run_share")


def _finish(job: Job, log: JobLog, seconds: float) -> None:
    """Join the units' parts, write the report, and the manifest last."""
    config = job.config
    entries = [job.done[unit.number] for unit in job.units]
    summary = summarize(entries)
    _check_run_budget(job, summary["rejected"], summary["inputs"])
    parts = [unit.left_out(config.output) for unit in job.units if job.done[unit.number].left_out_sha256]
    join_parts(parts, config.output)
    report = write_report(config.output, summary, seconds=seconds)
    remove_temporaries(config.output)
    manifest = make_manifest(
        config.dataset_name,
        entries,
        fingerprint=job.fingerprint,
        facts=job.facts,
        tokenizers=job.facts["tokenizers"],
    )
    write_manifest(config.output, manifest)
    log.finished(report)
