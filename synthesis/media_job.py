"""A whole corpus out of dialogues: units of fixed borders, on Ray or in this process, resumable.

``OUTPUT/metadata.jsonl``, ``images_224/``, ``music/``, ``speech/`` are the corpus; ``report.json``, ``rejects.parquet``,
``filtered.parquet``, ``README.md`` and ``data_card.json`` say what it is; ``ledger/``, ``parts/`` and ``rejects/`` are how
the next run of the same command knows what is done. Unit borders depend on the inputs alone, so one worker and forty write
the same bytes, and a job that was killed and started again writes those of one that was not.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from shards.errors import DatasetError
from shards.ledger import LEDGER, Entry, entry_path, read_entries
from shards.left_out import join_parts, part_path
from shards.output_lock import only_writer, remove_temporaries
from shards.summary import summarize
from shards.writer import commit_bytes, commit_pieces, file_sha256
from shards.writer import remove_temporaries as remove_temporary_files
from synthesis.data_card import write_data_card
from synthesis.dialogues import DIALOGUES_NAME, Dialogue, DialogueTurn, read_dialogues
from synthesis.media import FOLDERS
from synthesis.media_config import CorpusMediaConfig
from synthesis.media_plugs import open_plugs, plug_facts
from synthesis.media_unit import ANSWERS, PARTS, MediaTask, Slice, is_transient, make_unit, part_of
from tokenize_jobs.ledger import check_facts, commit_facts
from tokenize_jobs.rejects import check_budget

CORPUS_VERSION = 1
"""Raised whenever the same inputs and the same media would give another corpus."""
METADATA_NAME = "metadata.jsonl"
REPORT_NAME = "report.json"
SETTINGS_NAME = "synthesis.json"


def make_media(config: CorpusMediaConfig, dialogues_folder: Path, output: Path) -> dict[str, Any]:
    """Give the dialogues in ``dialogues_folder`` their media; the same call again goes on where it stopped.

    Args:
        dialogues_folder: ``OUTPUT/dialogues`` of the text stages.
        output: becomes the corpus.

    Returns:
        The report: ``inputs = written + filtered + rejected``, media, hours, units and seconds.

    Raises:
        ConfigError: a plug cannot work.
        DatasetError: no dialogues, two of one id, or another run writes to ``output``.
        FingerprintMismatch: ``output`` was begun with other dialogues or another config.
        RejectBudgetExceeded: more dialogues were rejected than ``run_share`` allows.
    """
    path = dialogues_folder / DIALOGUES_NAME
    ids = Counter(dialogue.dialogue_id for dialogue in read_dialogues(path))
    twice = [dialogue_id for dialogue_id, count in ids.items() if count > 1]
    if twice:
        raise DatasetError(
            f"{path}: expected every dialogue_id once, found {twice[0]!r} again; make the dialogues anew"
        )
    task = MediaTask(config, output, (path,), (path.name,), read_slice)
    return run_media(task, [ids.total()], origin={"dialogues_sha256": file_sha256(path)})


def read_slice(path: Path, start: int, stop: int, offset: int = 0) -> Iterator[Dialogue]:
    """Dialogues ``[start, stop)`` of a file."""
    for row in pq.read_table(path).slice(start, stop - start).to_pylist():
        turns = tuple(DialogueTurn(turn["role"], turn["text"]) for turn in row.pop("turns"))
        yield Dialogue(turns=turns, **row)


def cut_units(counts: Sequence[int], unit_dialogues: int) -> list[Slice]:
    """The units of sources with so many inputs; borders depend on nothing else."""
    borders = (
        (source, start, min(start + unit_dialogues, count))
        for source, count in enumerate(counts)
        for start in range(0, count, unit_dialogues)
    )
    return [Slice(number, *border) for number, border in enumerate(borders)]


def run_media(
    task: MediaTask,
    counts: Sequence[int],
    *,
    origin: Mapping[str, Any],
    offsets: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Make every unit that is not done, and finish the corpus; arguments and errors as :func:`make_media`.

    Args:
        counts: inputs of every source.
        origin: what decides the inputs, for the fingerprint.
        offsets: of every source that is lines, where its units begin.
    """
    began = time.perf_counter()
    units = cut_units(counts, task.config.unit_dialogues)
    if offsets:
        begins = chain.from_iterable(offsets)
        units = [replace(unit, offset=begin) for unit, begin in zip(units, begins, strict=True)]
    facts = corpus_facts(task.config, origin)
    with only_writer(task.output):
        task = replace(task, fingerprint=check_facts(task.output, facts))
        commit_facts(task.output, facts)
        for folder in (*FOLDERS.values(), PARTS, ANSWERS):
            (task.output / folder).mkdir(parents=True, exist_ok=True)
        _tidy(task.output)
        missing = _missing(task, units)
        _make(task, units, missing)
        return _finish(task, units, facts, seconds=time.perf_counter() - began)


def corpus_facts(config: CorpusMediaConfig, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bytes of a corpus; not who makes them, how fast, or what the card says."""
    kept = {"seed", "voices", "music_s", "spoken_share", "spoken_rounds", "unit_dialogues"}
    return {
        "version": CORPUS_VERSION,
        **config.model_dump(mode="json", include=kept),
        "plugs": plug_facts(config),
        "origin": dict(origin),
    }


def _tidy(output: Path) -> None:
    """Remove what a killed run was writing."""
    remove_temporaries(output)
    remove_temporary_files(*(output / folder for folder in (*FOLDERS.values(), PARTS, ANSWERS)))


def _missing(task: MediaTask, units: Sequence[Slice]) -> list[int]:
    """Numbers of the units to do: not done, their lines lost, or (when asked) with rejects worth another try."""
    done: set[int] = set()
    for entry in read_entries(task.output):
        if _is_whole(task.output, entry) and not (task.config.retry_rejects and any(map(is_transient, entry.rejected))):
            done.add(entry.number)
        else:
            entry_path(task.output, entry.number).unlink(missing_ok=True)
    return [unit.number for unit in units if unit.number not in done]


def _is_whole(output: Path, entry: Entry) -> bool:
    """Whether the lines and the rejects that an entry tells of are there."""
    part = part_of(output, entry.unit)
    lines = entry.shard is not None and part.is_file() and part.stat().st_size == entry.shard.num_bytes
    return lines and (not entry.left_out_sha256 or part_path(output, entry.unit).is_file())


def _make(task: MediaTask, units: Sequence[Slice], missing: Sequence[int]) -> None:
    if not missing:
        return
    rejected: Counter[str] = Counter()
    inputs = 0
    with tqdm(total=len(units), initial=len(units) - len(missing), unit="unit", desc="media", disable=None) as bar:
        for entry in _entries(task, units, missing):
            bar.update()
            inputs += entry.inputs
            rejected.update(entry.rejected)
            check_budget(rejected, inputs, share=task.config.run_share, where=str(task.output), key="run_share")


def _entries(task: MediaTask, units: Sequence[Slice], missing: Sequence[int]) -> Iterator[Entry]:
    if task.config.workers and (len(missing) > 1 or task.config.worker_gpus or task.config.address):
        # Ray takes seconds to import and start; this process needs none of it.
        from synthesis.media_ray import make_on_ray

        yield from make_on_ray(task, [units[number] for number in missing])
        return
    # One unit is one worker's, so it may as well be done here.
    plugs = open_plugs(task.config, task.output)
    for number in missing:
        yield make_unit(task, units[number], plugs)


def _finish(task: MediaTask, units: Sequence[Slice], facts: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """Join the units, remove what no line names, and say what the corpus is."""
    output = task.output
    summary = summarize(read_entries(output))
    assert summary.sums["units"] == len(units), "a unit is neither done nor missing"
    commit_pieces(output / METADATA_NAME, (part_of(output, unit.name).read_bytes() for unit in units))
    join_parts(summary.parts(output), output)
    # What another run may still ask for keeps its media: they are paid for.
    media = _count_media(output, sweep=not any(map(is_transient, summary.sums["rejected"])))
    sums = {key: value for key, value in summary.sums.items() if key not in ("tokens", "images", "items")}
    hours = {key: value for key, value in sums["hours"].items() if key in ("speech", "music")}
    report = {**sums, "hours": hours, "media": media, "seconds": round(seconds, 3)}
    commit_bytes(output / REPORT_NAME, _json(report))
    settings = {"facts": facts, "config": task.config.model_dump(mode="json"), "sources": list(task.names)}
    commit_bytes(output / SETTINGS_NAME, _json(settings))
    write_data_card(output)
    return report


def _count_media(output: Path, *, sweep: bool) -> dict[str, int]:
    """Files that a line of the corpus names, by modality; ``sweep`` removes the others."""
    named: set[str] = set()
    with (output / METADATA_NAME).open(encoding="utf-8") as lines:
        for line in lines:
            for message in json.loads(line)["chat"]:
                named.update(image["image_file"] for image in message["images"])
                named.update(piece["music_file"] for piece in message["music"])
                named.update(filter(None, [message["speech"]]))
    counts: dict[str, int] = {}
    for modality, folder in FOLDERS.items():
        files = list((output / folder).iterdir())
        for path in files:
            if sweep and path.name not in named:
                path.unlink()
        counts[str(modality)] = sum(path.name in named for path in files)
    if sum(counts.values()) != len(named):
        raise DatasetError(
            f"{output}: expected {len(named)} media, found {sum(counts.values())}; restore them, or remove "
            f"{output / LEDGER} to have what is missing made again"
        )
    return counts


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
