"""Which units of a tokenized corpus are done, and what each made: the format of ``OUTPUT/ledger``.

An :class:`Entry` is committed last, as ``unit-NNNNNN.json``: it exists only when every file it names is whole. When
:data:`FOLD_UNITS` neighbouring units are all done, their entries are folded into one ``units-NNNNNN.parquet`` (named after
the first), so that 300,000 units are 300 files; not one file that grows, and none is written more than once for that.
Where a unit has both, its json is the newer one: that is how an entry is replaced.

Nothing here knows what a unit is cut from; see :mod:`tokenize_jobs.plan`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.manifest import ShardEntry
from shards.writer import commit_bytes, commit_table

LEDGER = "ledger"
FACTS_NAME = "facts.json"
FOLD_UNITS = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """What a finished unit made.

    Attributes:
        unit: its name, ``unit-`` and its number.
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

    @property
    def number(self) -> int:
        """The unit's place in the plan."""
        return unit_number(self.unit)


def unit_name(number: int) -> str:
    """Stable name, zero-padded so that files sort as units do."""
    return f"unit-{number:06d}"


def unit_number(name: str) -> int:
    """Inverse of :func:`unit_name`."""
    return int(name.rpartition("-")[2])


def entry_path(output: Path, number: int) -> Path:
    """Where a unit's own entry lies, before it is folded and when it was replaced since."""
    return output / LEDGER / f"{unit_name(number)}.json"


def fold_path(output: Path, number: int) -> Path:
    """The file that a unit's entry is folded into."""
    return output / LEDGER / f"units-{number - number % FOLD_UNITS:06d}.parquet"


def commit_entry(output: Path, entry: Entry, *, writer: str = "") -> None:
    """Write or replace a unit's entry: the moment it is done."""
    data = json.dumps(asdict(entry), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    commit_bytes(entry_path(output, entry.number), data.encode(), writer=writer)


def read_entry(output: Path, number: int) -> Entry | None:
    """One unit's entry, or None where it has none. For many, :func:`read_entries` is the faster way.

    Raises:
        DatasetError: the entry cannot be read.
    """
    path = entry_path(output, number)
    if path.is_file():
        return _read_json(path)
    folded = fold_path(output, number)
    if not folded.is_file():
        return None
    return _read_fold(folded)[number % FOLD_UNITS]


def read_entries(output: Path) -> Iterator[Entry]:
    """Every entry, in the order of the units, one group of :data:`FOLD_UNITS` in memory at a time.

    Raises:
        DatasetError: an entry cannot be read.
    """
    singles, folds = _listing(output)
    for group in sorted({*folds, *(number - number % FOLD_UNITS for number in singles)}):
        entries = {entry.number: entry for entry in _read_fold(folds[group])} if group in folds else {}
        for number in singles.keys() & range(group, group + FOLD_UNITS):
            entries[number] = _read_json(singles[number])
        for number in sorted(entries):
            yield entries[number]


def fold_ledger(output: Path) -> int:
    """Fold every whole group of entries that is not folded, or that has entries which were replaced.

    Returns:
        How many groups were written.
    """
    singles, folds = _listing(output)
    counts = Counter(number - number % FOLD_UNITS for number in singles)
    groups = [group for group in sorted(counts) if group in folds or counts[group] == FOLD_UNITS]
    for group in groups:
        fold_group(output, group)
    return len(groups)


def fold_group(output: Path, first: int) -> None:
    """Fold the group that begins with unit ``first``, all of whose units are done.

    Kill -9 anywhere: entries are removed only after the file that holds them is committed.
    """
    path = fold_path(output, first)
    entries = {entry.number: entry for entry in _read_fold(path)} if path.is_file() else {}
    single = {number: entry_path(output, number) for number in range(first, first + FOLD_UNITS)}
    single = {number: path for number, path in single.items() if path.is_file()}
    entries.update((number, _read_json(path)) for number, path in single.items())
    commit_table(path, _to_table([entries[number] for number in sorted(entries)]))
    for path in single.values():
        path.unlink()


def _listing(output: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Single entries by unit, and folded ones by their first unit."""
    singles: dict[int, Path] = {}
    folds: dict[int, Path] = {}
    folder = output / LEDGER
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("unit-") and path.suffix == ".json":
            singles[unit_number(path.stem)] = path
        elif path.name.startswith("units-") and path.suffix == ".parquet":
            folds[unit_number(path.stem)] = path
    return singles, folds


def _read_json(path: Path) -> Entry:
    try:
        return _to_entry(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{path}: expected a ledger entry, found {error!r}; remove that file and run again"
        ) from error


def _read_fold(path: Path) -> list[Entry]:
    try:
        with path.open("rb") as file:
            lines = pq.ParquetFile(file).read().column("entry").to_pylist()  # pq.read_table imports pandas
        return [_to_entry(json.loads(line)) for line in lines]
    except (pa.ArrowInvalid, ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{path}: expected {FOLD_UNITS} folded ledger entries, found {error!r}; remove that file, and its units are "
            "done again"
        ) from error


def _to_table(entries: list[Entry]) -> pa.Table:
    """Entries as the JSON they were: parsing a line takes a tenth of the time of twenty columns of dictionaries."""
    lines = [json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False) for entry in entries]
    return pa.table({"unit": [entry.unit for entry in entries], "entry": lines})


def _to_entry(data: dict[str, Any]) -> Entry:
    shard = data.pop("shard")
    return Entry(shard=ShardEntry(**shard) if shard else None, **data)
