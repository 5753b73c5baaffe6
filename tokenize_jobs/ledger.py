"""What a run asks of the ledger (:mod:`shards.ledger`): which units of its plan are done, and with the same facts?

Kill -9 anywhere: a unit without an entry is simply done again and gives the same bytes. The ledger also keeps the
facts a dataset was made with, so that going on with other facts is an error that says what changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DatasetError, FingerprintMismatch
from shards.ledger import FACTS_NAME, LEDGER, Entry, entry_path, read_entries, read_entry
from shards.manifest import fingerprint
from shards.writer import commit_bytes

if TYPE_CHECKING:
    from pipeline.samples import Source

    # Only named in types: planning opens corpora and codecs, which takes seconds to import.
    from tokenize_jobs.plan import Unit, Units


def source_name(unit: Unit, root: Path) -> str:
    """The raw file as entries name it: relative to the corpus root, so that a corpus may be moved."""
    path, part = unit.source.path, unit.source.part
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return f"{name}::{part}" if part else name


def source_bytes(unit: Unit) -> int:
    """Size of the raw file; 0 for a folder."""
    return unit.source.path.stat().st_size if unit.source.path.is_file() else 0


def planned_entries(units: Units, output: Path, root: Path, expected_fingerprint: str) -> Iterator[tuple[Entry, bool]]:
    """Every entry in order, a thousand in memory at a time, and whether its files are there; else its unit is done again.

    Raises:
        DatasetError: an entry is of another slice or another raw file than the plan's, or of none.
        FingerprintMismatch: an entry was made with other facts.
    """
    shards, left_out = _sizes(output / "shards"), _sizes(output / "rejects")
    facts_of: dict[Source, tuple[str, int]] = {}
    for entry in read_entries(output):
        if entry.number >= len(units):
            raise DatasetError(
                f"{output}: holds units (first {entry.unit}) that this corpus no longer has: it now makes {len(units)}; "
                "restore the corpus, or choose another output"
            )
        unit = units[entry.number]
        if unit.source not in facts_of:
            facts_of[unit.source] = (source_name(unit, root), source_bytes(unit))
        _check_entry(entry, (*facts_of[unit.source], unit.start, unit.stop), expected_fingerprint, output)
        name = f"{entry.unit}.parquet"
        has_shard = entry.shard is None or shards.get(name) == entry.shard.num_bytes
        yield entry, has_shard and (not entry.left_out_sha256 or name in left_out)


def committed_entry(unit: Unit, output: Path) -> Entry:
    """The entry of a unit that a worker has just done.

    Raises:
        DatasetError: it is not there: driver and workers do not see the same folder.
    """
    entry = read_entry(output, unit.number)
    if entry is None:
        raise DatasetError(
            f"{entry_path(output, unit.number)}: committed by its worker, not seen here; output must be a folder that "
            "every node sees: a shared file system, or an object store (s3://, gs://)"
        )
    return entry


def check_facts(output: Path, facts: Mapping[str, Any]) -> str:
    """The fingerprint of ``facts``; they are those of the dataset in ``output``, if one was begun there.

    Raises:
        FingerprintMismatch: naming every fact that changed.
    """
    path = output / LEDGER / FACTS_NAME
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
    path = output / LEDGER / FACTS_NAME
    if not path.is_file():
        commit_bytes(path, data.encode())


def _check_entry(entry: Entry, planned: tuple[str, int, int, int], expected_fingerprint: str, output: Path) -> None:
    if entry.fingerprint != expected_fingerprint:
        raise FingerprintMismatch(
            f"{output}: {entry.unit} was made with fingerprint {entry.fingerprint}, this run has {expected_fingerprint}; "
            "choose another output"
        )
    found = (entry.source, entry.source_bytes, entry.start, entry.stop)
    if found != planned:
        raise DatasetError(
            f"{output}: {entry.unit} was made from {_slice(found)}, the corpus now has {_slice(planned)} in its place; "
            "restore the corpus, or choose another output"
        )


def _sizes(folder: Path) -> dict[str, int]:
    """Name and size of every file in a folder, by one listing; checksums are anygpt-verify's business."""
    if not folder.is_dir():
        return {}
    if isinstance(folder, Path):
        with os.scandir(folder) as files:
            return {file.name: file.stat().st_size for file in files}
    found: dict[str, Any] = folder.fs.find(folder.path, detail=True)
    return {name.rpartition("/")[2]: int(facts["size"]) for name, facts in found.items()}


def _slice(what: tuple[str, int, int, int]) -> str:
    name, size, start, stop = what
    return f"items {start} to {stop} of {name} ({size:,} bytes)"


def _changes(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {old!r}, now {new!r}"
