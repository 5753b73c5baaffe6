"""A whole leave-out list: signatures of every unit, then one match over all of them.

``OUTPUT/signatures/`` is kept, for the next call with another threshold or one corpus more needs only what is new.
``OUTPUT/left_out.parquet`` is what tokenization reads; ``OUTPUT/report.json`` comes last and says from what the list was
made, so a call that would make the same list does nothing. Neither has a time in it: equal inputs, equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.leave_out import KEY, leave_out_keys
from shards.errors import ConfigError
from shards.manifest import fingerprint
from shards.output_lock import only_writer
from shards.writer import TEMPORARY_SUFFIX, commit_bytes, commit_file, file_sha256
from tokenize_jobs.dedup_config import DedupConfig, match_facts
from tokenize_jobs.dedup_lists import read_lists
from tokenize_jobs.dedup_match import REASONS, Verdicts, judge
from tokenize_jobs.dedup_table import SignatureTable, open_table
from tokenize_jobs.dedup_units import SignatureTask, is_signed, sign_unit, unit_fingerprint
from tokenize_jobs.watchdog import remove_notes

LEFT_OUT_NAME = "left_out.parquet"
REPORT_NAME = "report.json"
DEDUP_VERSION = 1
"""Raised whenever the same signatures would give another list under the same config."""
LEFT_OUT_SCHEMA = pa.schema(
    [
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("of", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field(KEY, pa.uint64(), nullable=False),
    ]
)


def missing_units(tasks: Sequence[SignatureTask]) -> list[npt.NDArray[np.int64]]:
    """Of every corpus, the numbers of units without signatures."""
    return [
        np.array([unit.number for unit in task.units if not is_signed(task, unit)], dtype=np.int64) for task in tasks
    ]


def list_fingerprint(config: DedupConfig, tasks: Sequence[SignatureTask]) -> str:
    """Of everything that decides the leave-out list.

    Raises:
        ConfigError: an evaluation list is not there.
    """
    for given in config.decontaminate.lists:
        if not given.file.is_file():
            raise ConfigError(
                f"{given.file}: expected the evaluation list {given.name}, found no file; correct decontaminate.lists"
            )
    return fingerprint(
        {
            "version": DEDUP_VERSION,
            "match": match_facts(config),
            "lists": [file_sha256(given.file) for given in config.decontaminate.lists],
            "units": [[task.name, *(unit_fingerprint(task, unit) for unit in task.units)] for task in tasks],
        }
    )


def read_finished(config: DedupConfig, expected: str) -> dict[str, Any] | None:
    """The report of a list that was made from the same, or None."""
    path = config.output / REPORT_NAME
    if not path.is_file() or not (config.output / LEFT_OUT_NAME).is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    return report if report["fingerprint"] == expected else None


def run_dedup(config: DedupConfig, tasks: Sequence[SignatureTask]) -> dict[str, Any]:
    """Make what is missing, match, and write the list.

    Returns:
        The report.

    Raises:
        ConfigError: an evaluation list is wrong.
        CorpusError: a corpus changed while it was read.
    """
    expected = list_fingerprint(config, tasks)
    listed = read_lists(config.decontaminate.lists)
    with only_writer(config.output):
        sign_missing(config, tasks)
        finished = read_finished(config, expected)
        if finished is not None:
            return finished
        (config.output / REPORT_NAME).unlink(missing_ok=True)
        with open_table(config.output, memory_gib=config.memory_gib, threads=max(1, config.workers)) as table:
            table.fill(tasks, listed)
            counts = write_list(config.output / LEFT_OUT_NAME, table, judge(table, config))
        report = {
            "fingerprint": expected,
            "inputs": table.inputs,
            "left_out": counts,
            "config": match_facts(config),
            "sha256": file_sha256(config.output / LEFT_OUT_NAME),
        }
        data = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        commit_bytes(config.output / REPORT_NAME, data.encode())
        return report


def sign_missing(config: DedupConfig, tasks: Sequence[SignatureTask]) -> None:
    """Pass one, for the units whose signatures are not there."""
    for task in tasks:
        for path in task.folder.glob(f"*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
    missing = missing_units(tasks)
    total = sum(map(len, missing))
    with tqdm(total=total, unit="unit", desc="sign", disable=None) as progress:
        for _ in _sign(config, tasks, missing) if total else ():
            progress.update()
    for task in tasks:
        remove_notes(task.folder)


def _sign(
    config: DedupConfig, tasks: Sequence[SignatureTask], missing: Sequence[npt.NDArray[np.int64]]
) -> Iterator[tuple[int, int]]:
    if config.workers:
        # Ray takes seconds to import and start; signing in this process needs none of it.
        from tokenize_jobs.dedup_ray import sign_on_ray

        yield from sign_on_ray(tasks, missing, workers=config.workers, address=config.cluster.address)
        return
    for number, (task, units) in enumerate(zip(tasks, missing, strict=True)):
        for unit in units.tolist():
            sign_unit(task, task.units[unit], watched=False)
            yield number, unit


def write_list(path: Path, table: SignatureTable, verdicts: Verdicts) -> dict[str, dict[str, int]]:
    """Commit the list, in the order of the corpora.

    Returns:
        Corpus -> reason -> count; every corpus, but only reasons that occur.
    """
    names = list(table.inputs)
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as file:
        with pq.ParquetWriter(file, LEFT_OUT_SCHEMA, compression="zstd", compression_level=3) as writer:
            for rows in _rows(table, verdicts, names):
                writer.write_table(rows)
                for corpus, reason in zip(rows["corpus"].to_pylist(), rows["reason"].to_pylist(), strict=True):
                    counts[corpus][reason] = counts[corpus].get(reason, 0) + 1
        file.flush()
        os.fsync(file.fileno())
    commit_file(temporary, path)
    return counts


def _rows(table: SignatureTable, verdicts: Verdicts, names: Sequence[str]) -> Iterator[pa.Table]:
    table.register(
        "verdicts",
        {
            "sample": np.frombuffer(verdicts.samples, np.int64),
            "reason": np.frombuffer(verdicts.reasons, np.int8),
            "kept": np.frombuffer(verdicts.of, np.int64),
            "score": np.frombuffer(verdicts.scores, np.float64),
        },
    )
    query = """
        SELECT v.sample, s.corpus, s.sample_id, v.reason, o.corpus AS of_corpus, o.sample_id AS of_id, v.score
        FROM verdicts v JOIN samples s USING (sample) LEFT JOIN samples o ON o.sample = v.kept ORDER BY v.sample"""
    for batch in table.stream(query):
        rows = batch.to_pydict()
        corpora = [str(names[corpus]) for corpus in rows["corpus"]]
        kept = zip(rows["sample"], rows["of_corpus"], rows["of_id"], strict=True)
        yield pa.table(
            {
                "corpus": corpora,
                "sample_id": rows["sample_id"],
                "reason": [REASONS[reason] for reason in rows["reason"]],
                "of": [
                    verdicts.entries[sample] if name is None else f"{names[name]}:{of}" for sample, name, of in kept
                ],
                "score": rows["score"],
                KEY: leave_out_keys(corpora, rows["sample_id"]),
            },
            schema=LEFT_OUT_SCHEMA,
        )
