"""A unit of dialogues: its media, its lines of the corpus, and what it left out; a transaction.

Media are written first, each under its final name as soon as it is there (so that a run that is killed asks for none of
them again), then made durable together; then the unit's lines, its part of the rejects, and last its entry in the ledger.
An answer that was no good is written down as well, in ``answers/``, and not asked for again. A dialogue is written when
all its media are there; else it is rejected for the first that is not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from pipeline.samples import Filtered, Reject
from shards.errors import SampleError
from shards.ledger import Entry, commit_entry, unit_name
from shards.left_out import part_path
from shards.manifest import ShardEntry
from shards.modality import Modality
from shards.records import Provenance
from shards.writer import TEMPORARY_SUFFIX, commit_bytes, commit_table
from synthesis.corpus import MadeMedium, PlannedDialogue, dialogue_record, plan_dialogue
from synthesis.dialogues import Dialogue
from synthesis.media import FOLDERS, MediaPlug, MediaRequest, medium_name
from synthesis.media_checks import check_made, encode_made, seconds
from synthesis.media_config import CorpusMediaConfig
from tokenize_jobs.rejects import count_reasons, left_out_table

CORPUS = "anyinstruct"
PARTS, ANSWERS = "parts", "answers"
_TRANSIENT = re.compile(r"call_(timeout|no_connection|rate_limited|http_(408|409|425|5\d\d))")
_SYNCED_TOGETHER = 8
_ORDER = (Modality.IMAGE, Modality.MUSIC, Modality.SPEECH)

Input = Dialogue | Filtered | Reject
Plugs = Mapping[Modality, MediaPlug]


@dataclass(frozen=True, slots=True)
class Slice:
    """Inputs ``[start, stop)`` of a source; ``offset`` is the byte where they begin, for sources that are lines."""

    number: int
    source: int
    start: int
    stop: int
    offset: int = 0

    @property
    def name(self) -> str:
        """As files are called."""
        return unit_name(self.number)


@dataclass(frozen=True, slots=True)
class MediaTask:
    """One corpus to make.

    Attributes:
        sources: files of dialogues, or of what becomes dialogues.
        names: the sources, as rejects and the ledger name them.
        read: inputs ``[start, stop)`` of a source, from its byte ``offset``; a function that other processes can import.
        fingerprint: of everything that decides the corpus.
    """

    config: CorpusMediaConfig
    output: Path
    sources: tuple[Path, ...]
    names: tuple[str, ...]
    read: Callable[[Path, int, int, int], Iterator[Input]]
    fingerprint: str = ""


def make_unit(task: MediaTask, unit: Slice, plugs: Plugs) -> Entry:
    """Make and commit a unit.

    Raises:
        ConfigError: a plug cannot work at all.
    """
    source = task.names[unit.source]
    inputs = list(task.read(task.sources[unit.source], unit.start, unit.stop, unit.offset))
    planned = [_planned(item, task, source, unit.start + nth) for nth, item in enumerate(inputs)]
    made = _make_all(task.output, [item for item in planned if isinstance(item, PlannedDialogue)], plugs)
    results = [_result(item, made, source, unit.start + nth) for nth, item in enumerate(planned)]
    return _commit(task, unit, results, made)


def is_transient(reason: str) -> bool:
    """Whether a reason tells of an endpoint and not of the request: another run may ask again."""
    return bool(_TRANSIENT.fullmatch(reason))


def part_of(output: Path, name: str) -> Path:
    """Where the lines of a unit lie until all units are done, and after."""
    return output / PARTS / f"{name}.jsonl"


def _planned(item: Input, task: MediaTask, source: str, place: int) -> PlannedDialogue | Filtered | Reject:
    if not isinstance(item, Dialogue):
        return item
    try:
        return plan_dialogue(item, task.config)
    except SampleError as error:
        return _reject(item, error, source, place)


def _result(
    item: PlannedDialogue | Filtered | Reject,
    made: Mapping[str, MadeMedium | SampleError],
    source: str,
    place: int,
) -> PlannedDialogue | Filtered | Reject:
    if not isinstance(item, PlannedDialogue):
        return item
    for request in item.requests:
        outcome = made.get(request.key)
        if isinstance(outcome, SampleError):
            told = SampleError(outcome.reason, f"{request.key}: {_message(outcome)}")
            return _reject(item.dialogue, told, source, place)
    return item


def _reject(dialogue: Dialogue, error: SampleError, source: str, place: int) -> Reject:
    return Reject(dialogue.dialogue_id, CORPUS, error.reason, _message(error), Provenance(source, "", place))


def _message(error: SampleError) -> str:
    return str(error).removeprefix(f"{error.reason}: ")


def _make_all(output: Path, dialogues: Sequence[PlannedDialogue], plugs: Plugs) -> dict[str, MadeMedium | SampleError]:
    """Key -> what was made for it; nothing is asked for a dialogue that lacks something already."""
    made: dict[str, MadeMedium | SampleError] = {}
    for modality in _ORDER:
        wanted = [
            request
            for dialogue in dialogues
            if not any(isinstance(made.get(request.key), SampleError) for request in dialogue.requests)
            for request in dialogue.requests
            if request.modality is modality
        ]
        made |= make_files(output, wanted, plugs[modality]) if wanted else {}
    return made


def make_files(output: Path, requests: Sequence[MediaRequest], plug: MediaPlug) -> dict[str, MadeMedium | SampleError]:
    """Key -> the file of each request, made by ``plug`` unless it is there; or why there is none."""
    facts = plug.facts()
    names = {request.key: medium_name(request, facts) for request in requests}
    made: dict[str, MadeMedium | SampleError] = {}
    for request in requests:
        found = _found(output, request.modality, names[request.key])
        if found is not None:
            made[request.key] = found
    waiting = [
        request
        for first in range(0, len(requests), plug.together)
        for request in requests[first : first + plug.together]
        if any(one.key not in made for one in requests[first : first + plug.together])
    ]
    for request, outcome in plug.make(waiting) if waiting else ():
        name = names[request.key]
        try:
            if isinstance(outcome, SampleError):
                raise outcome
            checked = check_made(request, outcome)
            _put(output / FOLDERS[request.modality] / name, encode_made(request.modality, checked))
            made[request.key] = MadeMedium(name, seconds(request.modality, checked))
        except SampleError as error:
            made[request.key] = error
            if not is_transient(error.reason):
                told = {"reason": error.reason, "message": _message(error), "key": request.key, "text": request.text}
                _put(output / ANSWERS / f"{name}.json", json.dumps(told, ensure_ascii=False).encode())
    lost = [request.key for request in requests if request.key not in made]
    assert not lost, f"a plug left requests unanswered: {lost[:3]}"
    return made


def _found(output: Path, modality: Modality, name: str) -> MadeMedium | SampleError | None:
    """What an earlier run made; a file that a power failure has cut is none."""
    path = output / FOLDERS[modality] / name
    try:
        if path.is_file():
            return MadeMedium(name, _length_s(modality, path.read_bytes()))
        told = json.loads((output / ANSWERS / f"{name}.json").read_text(encoding="utf-8"))
        return SampleError(told["reason"], told["message"])
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, KeyError, soundfile.LibsndfileError):
        return None


def _length_s(modality: Modality, data: bytes) -> float:
    if modality is Modality.IMAGE:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
        return 0.0
    sound, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    if not len(sound):
        raise ValueError("no samples")
    return len(sound) / rate_hz


def _put(path: Path, data: bytes) -> None:
    """Whole under its name at once; durable with the rest of the unit."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.write_bytes(data)
    temporary.replace(path)


def _commit(
    task: MediaTask,
    unit: Slice,
    results: Sequence[PlannedDialogue | Filtered | Reject],
    made: Mapping[str, MadeMedium | SampleError],
) -> Entry:
    output = task.output
    written = [item for item in results if isinstance(item, PlannedDialogue)]
    left_out = [item for item in results if not isinstance(item, PlannedDialogue)]
    files = {key: medium for key, medium in made.items() if isinstance(medium, MadeMedium)}
    used = [(request.modality, files[request.key]) for item in written for request in item.requests]
    _make_durable(output, [output / FOLDERS[modality] / medium.name for modality, medium in used])
    lines = b"".join(_line(dialogue_record(item, files)) for item in written)
    path = part_of(output, unit.name)
    commit_bytes(path, lines)
    shard = ShardEntry(path.relative_to(output).as_posix(), len(written), len(lines), hashlib.sha256(lines).hexdigest())
    digest = commit_table(part_path(output, unit.name), left_out_table(left_out, unit.name)) if left_out else ""
    sounds = (Modality.MUSIC, Modality.SPEECH)
    entry = Entry(
        unit=unit.name,
        fingerprint=task.fingerprint,
        source=task.names[unit.source],
        source_bytes=task.sources[unit.source].stat().st_size,
        start=unit.start,
        stop=unit.stop,
        inputs=len(results),
        written=len(written),
        filtered=count_reasons(item for item in left_out if isinstance(item, Filtered)),
        rejected=count_reasons(item for item in left_out if isinstance(item, Reject)),
        seconds={str(one): round(sum(m.seconds for kind, m in used if kind is one), 4) for one in sounds},
        images=sum(modality is Modality.IMAGE for modality, _ in used),
        shard=shard,
        left_out_sha256=digest,
    )
    commit_entry(output, entry)
    return entry


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _make_durable(output: Path, files: Sequence[Path]) -> None:
    """Have the disk hold the files, and their names, before anything says that they are there."""
    # Together they wait for the disk once in a while; one after the other, once a file.
    with ThreadPoolExecutor(_SYNCED_TOGETHER) as threads:
        for paths in (files, [output / folder for folder in FOLDERS.values()]):
            deque(threads.map(_sync, paths), maxlen=0)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
