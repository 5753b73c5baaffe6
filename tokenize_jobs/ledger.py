"""Which units are done. One small file per unit, committed last: it exists only when everything it names is whole.

Kill -9 anywhere: a unit without an entry is simply done again and gives the same bytes. The ledger also keeps the
facts a dataset was made with, so that going on with other facts is an error that says what changed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DatasetError, FingerprintMismatch
from shards.manifest import ShardEntry, fingerprint
from shards.writer import TEMPORARY_SUFFIX, commit_bytes

if TYPE_CHECKING:
    # Only named in types: planning opens corpora and codecs, which takes seconds to import.
    from tokenize_jobs.plan import Unit

FACTS_NAME = "facts.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a finished unit made.

    Attributes:
        source: the raw file, relative to the corpus root, and its part; with ``source_bytes``, ``start`` and ``stop``
            it says what the unit was, so that a changed corpus is noticed.
        inputs: items after windows were cut; always ``written + filtered + rejected``.
        tokens: media tokens by modality, as the language model reads them.
        seconds: length of sound by modality.
        shard: None when no sample was left.
        left_out_sha256: of its part of the rejects, empty when nothing was left out.
    """

    unit: str
    fingerprint: str
    source: str
    source_bytes: int
    start: int
    stop: int
    inputs: int
    written: int
    filtered: Mapping[str, int] = field(default_factory=dict[str, int])
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    images: int = 0
    shard: ShardEntry | None = None
    left_out_sha256: str = ""


def source_name(unit: Unit, root: Path) -> str:
    """The raw file as entries name it: relative to the corpus root, so that a corpus may be moved."""
    path, part = unit.source.path, unit.source.part
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return f"{name}::{part}" if part else name


def source_bytes(unit: Unit) -> int:
    """Size of the raw file; 0 for a folder."""
    return unit.source.path.stat().st_size if unit.source.path.is_file() else 0


def commit_entry(entry: Entry, path: Path, *, writer: str) -> None:
    """Write a unit's entry: the moment it is done."""
    data = json.dumps(asdict(entry), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    commit_bytes(path, data.encode(), writer=writer)


def read_entry(unit: Unit, output: Path, root: Path, expected_fingerprint: str) -> Entry | None:
    """A unit's entry, or None when the unit has to be done.

    Raises:
        DatasetError: the entry is of another slice or another raw file than the plan's.
    """
    path = unit.entry(output)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        shard = data.pop("shard")
        entry = Entry(shard=ShardEntry(**shard) if shard else None, **data)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{path}: expected a ledger entry, found {error!r}; remove that file and run again"
        ) from error
    if entry.fingerprint != expected_fingerprint:
        raise FingerprintMismatch(
            f"{path}: made with fingerprint {entry.fingerprint}, this run has {expected_fingerprint}; choose another output"
        )
    found = (entry.source, entry.source_bytes, entry.start, entry.stop)
    planned = (source_name(unit, root), source_bytes(unit), unit.start, unit.stop)
    if found != planned:
        raise DatasetError(
            f"{path}: this unit was made from {_slice(found)}, the corpus now has {_slice(planned)} in its place; "
            "restore the corpus, or choose another output"
        )
    return entry if _is_whole(entry, unit, output) else None


def check_facts(output: Path, facts: Mapping[str, Any]) -> str:
    """The fingerprint of ``facts``; they are those of the dataset in ``output``, if one was begun there.

    Raises:
        FingerprintMismatch: naming every fact that changed.
    """
    path = output / "ledger" / FACTS_NAME
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        changes = list(_changes(stored, json.loads(json.dumps(facts)), ""))
        if changes:
            raise FingerprintMismatch(
                f"{output}: holds samples made with other facts: {'; '.join(changes)}; "
                "go back to those, choose another output (--set output=DIR), or remove that folder"
            )
    return fingerprint(facts)


def commit_facts(output: Path, facts: Mapping[str, Any]) -> None:
    """Store the facts beside the entries; done before the first unit."""
    data = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = output / "ledger" / FACTS_NAME
    if not path.is_file():
        commit_bytes(path, data.encode())


def check_no_strangers(output: Path, units: Sequence[Unit]) -> None:
    """Raise ``DatasetError`` if the ledger has units that the plan does not know: the corpus has shrunk."""
    known = {unit.name for unit in units}
    found = sorted(path.stem for path in (output / "ledger").glob("unit-*.json"))
    strangers = [name for name in found if name not in known]
    if strangers:
        raise DatasetError(
            f"{output}: holds {len(strangers)} units (first {strangers[0]}) that this corpus no longer has: it now makes "
            f"{len(units)}; restore the corpus, or choose another output"
        )


def remove_temporaries(output: Path) -> None:
    """Remove what writers that were killed have left."""
    for folder in (output, output / "shards", output / "rejects", output / "ledger"):
        for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Hold the output folder for one run at a time; a killed run lets go by itself.

    Raises:
        DatasetError: another run is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(
                f"{output}: expected no other run to write there, found one; wait for it or choose another output"
            ) from error
        yield
    finally:
        os.close(folder)


def _is_whole(entry: Entry, unit: Unit, output: Path) -> bool:
    """Whether the files an entry names are there; their checksums are anygpt-verify's business."""
    shard, left_out = unit.shard(output), unit.left_out(output)
    if entry.shard is not None and not (shard.is_file() and shard.stat().st_size == entry.shard.num_bytes):
        return False
    return not entry.left_out_sha256 or left_out.is_file()


def _slice(what: tuple[str, int, int, int]) -> str:
    name, size, start, stop = what
    return f"items {start} to {stop} of {name} ({size:,} bytes)"


def _changes(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {old!r}, now {new!r}"
