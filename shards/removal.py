"""Take-downs: samples leave a dataset of sample shards for good, and nothing but the touched shards is written.

The order of commits makes a killed removal one that is finished by the same command, with the same bytes:

1. ``removed.parquet``: what is to go, from which unit. From here on the outcome is decided.
2. The manifest is set aside under ``ledger/``: until the end the folder is no dataset, rather than a wrong one.
3. Unit by unit: its shard without the rows, its part of what was left out with them (filtered, for the reason
   ``removed``), its ledger entry. That is the order tokenization commits in, and an entry says that both files are whole.
4. The ledger is folded; ``rejects.parquet``, ``filtered.parquet`` and ``report.json`` follow; the manifest comes last.

The dataset's fingerprint stays: it says how samples are made, and a later run must go on with the same facts. The
checksums of its shards change, and with them the fingerprint of whatever is packed from it (:mod:`shards.lineage`). No
time is written anywhere: the same removals give the same bytes, in whichever order they were asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.ledger import Entry, read_entries
from shards.left_out import REMOVED, REMOVED_NAME, REMOVED_SCHEMA, part_path
from shards.lineage import source_names
from shards.lookup import find_datasets, find_ids, input_id
from shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from shards.output_lock import only_writer, remove_temporaries
from shards.packed import SIDECAR_SUFFIX, sidecar_path
from shards.removal_units import finish, is_open, read_manifest_aside, rebuild, set_manifest_aside
from shards.writer import commit_table

pc: Any = pyarrow.compute  # made when imported, so that type checkers do not see its functions
_KEY = ("unit", "sample_id", "source_file", "member", "offset")


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal does, did, or would do.

    Attributes:
        sample_ids: (unit, sample id) of everything that is found now and leaves, windows one by one.
        unknown: ids that neither the dataset nor its left-out lists nor earlier removals have.
        before: how many of the ids were removed earlier.
        units: names of the units whose files are written, those a killed removal left open included.
        finished: whether the folder has its manifest again; False where tokenization itself is not finished.
    """

    folder: Path
    sample_ids: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    before: int = 0
    units: tuple[str, ...] = ()
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Stale:
    """A packed dataset that holds removed samples, and must be packed again.

    Attributes:
        rows, documents: how many of its rows, and of the documents in them, are of removed samples.
        sample_ids: how many removed samples are in it.
        shards: stems of the shards that hold them.
    """

    folder: Path
    rows: int
    documents: int
    sample_ids: int
    shards: tuple[str, ...]


def removed_samples(output: Path, unit: str) -> dict[str, str]:
    """What must not come back into a unit: ids as they were asked for, with the words to leave them out with.

    An id is meant if it is in here, or if :func:`shards.lookup.input_id` of it is.
    """
    path = output / REMOVED_NAME
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        table = pq.read_table(file, columns=["sample_id", "asked", "unit", "error"])
    rows = table.filter(pc.equal(table["unit"], unit)).to_pylist()
    return {row[name]: row["error"] for row in rows for name in ("sample_id", "asked")}


def removed_ids(output: Path, unit: str) -> frozenset[str]:
    """The ids of :func:`removed_samples` alone."""
    return frozenset(removed_samples(output, unit))


def plan_removal(folder: Path, ids: Iterable[str]) -> Removal:
    """What :func:`remove_samples` would do; writes nothing.

    Raises:
        DatasetError: the folder holds no sample shards.
    """
    return _plan(folder, ids, "")[0]


def remove_samples(folder: Path, ids: Iterable[str], *, reason: str = "", ignore_unknown: bool = False) -> Removal:
    """Take samples out of a dataset, and finish whatever removal was killed before.

    Args:
        ids: of samples, or of recordings whose windows all go.
        reason: said in ``removed.parquet`` and ``filtered.parquet``; the first one given for a sample stays.

    Raises:
        DatasetError: the folder holds no sample shards, or another run writes there; with ``ignore_unknown`` False, an
            id is not there, and nothing is written.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a dataset of samples, found no such folder; check the path")
    with only_writer(folder):
        removal, tombstones = _plan(folder, ids, reason)
        if removal.unknown and not ignore_unknown:
            raise DatasetError(unknown_message(removal))
        if removal.sample_ids:
            remove_temporaries(folder)
            commit_table(folder / REMOVED_NAME, tombstones)
        return _carry_out(removal, tombstones)


def finish_removals(folder: Path) -> Removal:
    """Finish what a killed removal has left undone; for tokenization, before it goes on with a folder it holds.

    Units that lost a file are left as they are: they are made again, without what :func:`removed_samples` names.
    """
    if not (folder / REMOVED_NAME).is_file():  # the usual case, and an empty Arrow table imports pandas
        return Removal(folder)
    tombstones = read_removed(folder)
    if not len(tombstones) or next(read_entries(folder), None) is None:
        return Removal(folder)
    return _carry_out(_plan(folder, (), "")[0], tombstones, skip_damaged=True)


def stale_datasets(removed_from: Path, below: Sequence[Path], *, also: Iterable[str] = ()) -> list[Stale]:
    """Packed datasets, in these folders or below them, made from this one; how much they hold of what was removed.

    Those that hold nothing removed are listed too, with zeros. Everything ever removed counts, not the last removal only.

    Args:
        also: ids that are about to be removed.
    """
    manifest = read_manifest(removed_from)
    removed = sorted({*read_removed(removed_from)["sample_id"].to_pylist(), *also})
    packed = find_datasets(below, "packed")
    return [
        _stale(path, found, manifest.name, removed) for path, found in packed if manifest.name in source_names(found)
    ]


def read_removed(folder: Path) -> pa.Table:
    """The take-downs of a dataset: rows of ``REMOVED_SCHEMA`` by unit and id, none where nothing was removed."""
    path = folder / REMOVED_NAME
    if not path.is_file():
        return REMOVED_SCHEMA.empty_table()
    with path.open("rb") as file:
        return pq.read_table(file, schema=REMOVED_SCHEMA)


def unknown_message(removal: Removal) -> str:
    """Which ids are not there, for a person."""
    named = ", ".join(removal.unknown[:5]) + (", ..." if len(removal.unknown) > 5 else "")
    return (
        f"{removal.folder}: expected every id to be of this dataset, found {len(removal.unknown)} that are not: {named}; "
        "nothing was written; correct the list, or pass --ignore-unknown where it is meant for several datasets"
    )


def _plan(folder: Path, ids: Iterable[str], reason: str) -> tuple[Removal, pa.Table]:
    """What would be done, and the take-downs there would be afterwards."""
    entries = _entries(folder)
    asked = list(dict.fromkeys(ids))
    earlier = read_removed(folder)
    found = list(_locate(folder, entries, asked, reason))
    # A take-down is told by its unit and its id: while a killed removal is open, its rows are still found.
    old = set(zip(earlier["unit"].to_pylist(), earlier["sample_id"].to_pylist(), strict=True))
    new = [row for row in found if (row["unit"], row["sample_id"]) not in old]
    rows = sorted([*earlier.to_pylist(), *new], key=lambda row: tuple(row[name] for name in _KEY))
    earlier_ids = {name for _, name in old} | {input_id(name) for _, name in old} | set(earlier["asked"].to_pylist())
    new_ids = {row["asked"] for row in new}
    removals = Counter(row["unit"] for row in rows)
    removal = Removal(
        folder,
        sample_ids=tuple(sorted({(row["unit"], row["sample_id"]) for row in new})),
        unknown=tuple(name for name in asked if name not in new_ids | earlier_ids),
        before=sum(name in earlier_ids - new_ids for name in asked),
        units=tuple(entry.unit for entry in entries if is_open(folder, entry, removals[entry.unit])),
        finished=(folder / MANIFEST_NAME).is_file(),
    )
    return removal, pa.Table.from_pylist(rows, schema=REMOVED_SCHEMA)


def _entries(folder: Path) -> list[Entry]:
    """The ledger of a dataset of samples, finished or not.

    Raises:
        DatasetError: it has none.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if manifest is not None and manifest.kind != "samples":
        raise DatasetError(
            f"{folder}: expected a dataset of samples, found one of kind {manifest.kind!r}; remove from the samples it "
            "was packed from, then pack again"
        )
    entries = list(read_entries(folder))
    if not entries:
        raise DatasetError(
            f"{folder}: expected a dataset made by anygpt-tokenize, found none with a ledger; give its output folder, or "
            "make the dataset again without these samples"
        )
    return entries


def _locate(folder: Path, entries: Sequence[Entry], asked: Sequence[str], reason: str) -> Iterator[dict[str, Any]]:
    """Take-downs of every row, written or left out, of the wanted ids."""
    columns = ["sample_id", "corpus", "source_file", "member", "offset"]
    shards = {folder / entry.shard.path: entry.unit for entry in entries if entry.shard is not None}
    parts = {part_path(folder, entry.unit): entry.unit for entry in entries if entry.left_out_sha256}
    unit_of = shards | parts
    wanted = set(asked)
    for found in find_ids(unit_of, asked, columns):
        for row in found.table.to_pylist():
            name = row["sample_id"] if row["sample_id"] in wanted else input_id(row["sample_id"])
            filled = {key: row[key] or ("" if key != "offset" else 0) for key in columns}
            yield {**filled, "reason": REMOVED, "error": reason, "unit": unit_of[found.path], "asked": name}


def _carry_out(removal: Removal, tombstones: pa.Table, *, skip_damaged: bool = False) -> Removal:
    """Steps 2 to 4; does nothing where nothing is open."""
    folder = removal.folder
    if not removal.units and read_manifest_aside(folder) is None:
        return replace(removal, finished=(folder / MANIFEST_NAME).is_file())
    remove_temporaries(folder)
    set_manifest_aside(folder)
    todo = set(removal.units)
    # A list: entries are replaced while it is walked.
    for entry in [entry for entry in read_entries(folder) if entry.unit in todo]:
        try:
            rebuild(folder, entry, tombstones.filter(pc.equal(tombstones["unit"], entry.unit)))
        except DatasetError:
            if not skip_damaged:
                raise
    return replace(removal, finished=finish(folder))


def _stale(folder: Path, packed: Manifest, source: str, removed: Sequence[str]) -> Stale:
    """How much of one packed dataset comes from removed samples of the dataset named ``source``."""
    paths = [sidecar_path(folder / shard.path) for shard in packed.shards]
    rows, documents = 0, 0
    ids: set[str] = set()
    shards: list[str] = []
    for found in find_ids(paths, removed, ["row", "sample_id", "dataset"]):
        table = found.table.filter(pc.equal(found.table["dataset"], source))
        if len(table):
            shards.append(found.path.name.removesuffix(SIDECAR_SUFFIX))
            rows += pc.count_distinct(table["row"]).as_py()
            documents += len(table)
            ids.update(table["sample_id"].to_pylist())
    return Stale(folder, rows, documents, len(ids), tuple(shards))
