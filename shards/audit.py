"""Where a sample came from: packed rows -> sample shard -> file, member and offset of the corpus, with the licence.

Reads one column of every sidecar and sample shard (:mod:`shards.lookup`), and whole rows only where the id is. A packed
dataset knows its samples' datasets by name; their folders are handed in, and :mod:`shards.lineage` says whether they are
still what was packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.ledger import LEDGER, Entry, read_entry, unit_name, unit_number
from shards.left_out import FILTERED_NAME, REJECTS_NAME, REMOVED, REMOVED_NAME
from shards.lineage import is_fresh, source_names
from shards.lookup import Found, find_datasets, find_ids, nearest_ids
from shards.manifest import Manifest, read_manifest
from shards.modality import Modality
from shards.packed import sidecar_path

_TEXT_SHOWN = 200
_LEFT_OUT = {"reason": "", "error": "", "message": "", "source_file": "", "member": "", "offset": 0, "unit": ""}


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a packed row that holds the sample, or a piece of it.

    Attributes:
        row: within its shard; ``dataset_row`` numbers the rows of the whole dataset.
        position: number of the document within the row.
        source: name of the dataset of samples it was packed from.
        draw, direction: which telling of the sample.
        start, stop: its ids are ``[start, stop)`` of the row, ``offset`` is where they begin in the document.
    """

    folder: str
    shard: str
    row: int
    dataset_row: int
    position: int
    sample_id: str
    source: str
    draw: int
    direction: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """One segment without its codes.

    Attributes:
        text: the first 200 characters.
        tokens: as the language model reads it; None for text, whose ids depend on the vocabulary.
    """

    slot: str
    modality: str
    text: str | None
    tokens: int | None
    frames: int | None
    levels: int | None
    duration_s: float | None
    media_sha256: str


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """A sample at rest, and the place in the corpus it was made from.

    Attributes:
        row: within its shard.
        unit: the slice of the corpus that its shard was made of, in words; empty without a ledger.
    """

    folder: str
    dataset: str
    fingerprint: str
    sample_id: str
    corpus: str
    split: str
    shard: str
    row: int
    segments: tuple[SegmentFacts, ...]
    source_file: str
    member: str
    offset: int
    url: str
    licence: str
    quality: dict[str, float]
    unit: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why something with this id is not in a dataset: ``rejected``, ``filtered`` or ``removed``."""

    folder: str
    sample_id: str
    outcome: str
    reason: str
    error: str
    source_file: str
    member: str
    offset: int
    unit: str


@dataclass(frozen=True, slots=True)
class Trail:
    """All that is known of an id.

    Attributes:
        notes: what a person must know besides: stale rows, sources that are not at hand.
    """

    sample_id: str
    dataset: str
    kind: str
    fingerprint: str
    places: tuple[Place, ...] = ()
    samples: tuple[SampleFacts, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def trace(folder: Path, sample_id: str, *, samples: Sequence[Path] = ()) -> Trail:
    """Follow an id from a dataset back to the corpus.

    Args:
        folder: of packed rows or of samples.
        sample_id: of a sample, of one of its windows, or of the recording that windows were cut from.
        samples: of packed rows: the datasets of samples, or folders to search for them.

    Raises:
        DatasetError: a folder is no dataset; or none has the id, and then the nearest ids are named.
    """
    manifest = read_manifest(folder)
    if manifest.kind == "packed":
        trail = _trace_packed(folder, manifest, sample_id, samples)
    else:
        facts, left_out = _samples_of(folder, manifest, sample_id), _left_out_of(folder, sample_id)
        trail = Trail(sample_id, str(folder), manifest.kind, manifest.fingerprint, samples=facts, left_out=left_out)
    if trail.places or trail.samples or trail.left_out:
        return trail
    nearest = nearest_ids(_id_files(folder, manifest), sample_id)
    advice = f"; the nearest are {', '.join(nearest)}" if nearest else "; the dataset has no ids at all"
    raise DatasetError(f"{folder}: expected the id {sample_id!r}, found none such, written or left out{advice}")


def _trace_packed(folder: Path, manifest: Manifest, sample_id: str, below: Sequence[Path]) -> Trail:
    names = source_names(manifest)
    sources = [(path, found) for path, found in find_datasets(below, "samples") if found.name in names]
    places = _places_of(folder, manifest, sample_id)
    facts = tuple(fact for path, found in sources for fact in _samples_of(path, found, sample_id))
    left_out = [*_left_out_of(folder, sample_id)]
    for path, _ in sources:
        left_out += _left_out_of(path, sample_id)
    notes = [*_source_notes(manifest, sources), *_absence_notes(manifest, places, facts, left_out)]
    return Trail(
        sample_id, str(folder), manifest.kind, manifest.fingerprint, places, facts, tuple(left_out), tuple(notes)
    )


def _source_notes(manifest: Manifest, sources: Sequence[tuple[Path, Manifest]]) -> list[str]:
    missing = sorted({*source_names(manifest)} - {found.name for _, found in sources})
    if missing:
        return [f"samples of {', '.join(missing)} not looked at: give their folders with --samples"]
    if not is_fresh(manifest, [found for _, found in sources]):
        return ["stale: the samples are not those it was packed from, or have changed since; pack it again"]
    return []


def _absence_notes(
    manifest: Manifest, places: Sequence[Place], samples: Sequence[SampleFacts], left_out: Sequence[LeftOut]
) -> list[str]:
    """Why rows hold what the samples no longer have, or lack what they have."""
    if places and any(item.outcome == REMOVED for item in left_out):
        return ["removed since it was packed, and still in these rows: pack it again"]
    if places or not samples:
        return []
    splits = manifest.config.get("splits") or ()
    others = sorted({sample.split for sample in samples} - set(splits)) if splits else []
    if others:
        return [f"not packed: its split is {', '.join(others)}, packed are {', '.join(splits)}"]
    if manifest.config.get("validation_share"):
        part = "training" if manifest.config.get("validation") else "validation"
        return [f"not packed here: it may be in the {part} part, which is a dataset of its own"]
    return [] if left_out else ["not packed: among the samples, in none of the rows"]


def _places_of(folder: Path, manifest: Manifest, sample_id: str) -> tuple[Place, ...]:
    first_rows = accumulate((shard.num_rows for shard in manifest.shards), initial=0)
    sidecars = {
        sidecar_path(folder / shard.path): (shard.path, first)
        for shard, first in zip(manifest.shards, first_rows, strict=False)
    }
    places: list[Place] = []
    for found in find_ids(sidecars, [sample_id]):
        shard, first = sidecars[found.path]
        for row in found.table.to_pylist():
            source = row.pop("dataset")
            places.append(Place(str(folder), shard, dataset_row=first + row["row"], source=source, **row))
    return tuple(places)


def _samples_of(folder: Path, manifest: Manifest, sample_id: str) -> tuple[SampleFacts, ...]:
    shards = {folder / shard.path: shard.path for shard in manifest.shards}
    facts: list[SampleFacts] = []
    for found in find_ids(shards, [sample_id]):
        facts += _sample_facts(folder, manifest, shards[found.path], found)
    return tuple(facts)


def _sample_facts(folder: Path, manifest: Manifest, shard: str, found: Found) -> list[SampleFacts]:
    unit = _unit_in_words(folder, Path(shard).stem)
    facts: list[SampleFacts] = []
    for number, row in zip(found.rows.tolist(), found.table.to_pylist(), strict=True):
        facts.append(
            SampleFacts(
                str(folder),
                manifest.name,
                manifest.fingerprint,
                row["sample_id"],
                row["corpus"],
                row["split"],
                shard,
                number,
                tuple(_segment_facts(segment) for segment in row["segments"]),
                row["source_file"] or "",
                row["member"] or "",
                row["offset"] or 0,
                row["url"] or "",
                row["licence"] or "",
                dict(row["quality"] or ()),
                unit,
            )
        )
    return facts


def _segment_facts(segment: dict[str, Any]) -> SegmentFacts:
    codes, levels, modality = segment["codes"], segment["levels"], segment["modality"]
    text = None if segment["text"] is None else segment["text"][:_TEXT_SHOWN]
    frames = len(codes) // levels if codes is not None else None
    tokens = frames * Modality(modality).rate.levels_read if frames is not None else None
    sha256 = segment["media_sha256"] or ""
    return SegmentFacts(segment["slot"], modality, text, tokens, frames, levels, segment["duration_s"], sha256)


def _unit_in_words(folder: Path, stem: str) -> str:
    """The slice of the corpus that a shard was made of, where a ledger tells."""
    entry: Entry | None = None
    number = stem.removeprefix("unit-")
    if (folder / LEDGER).is_dir() and number.isdecimal() and stem == unit_name(unit_number(stem)):
        entry = read_entry(folder, unit_number(stem))
    if entry is None:
        return ""
    return f"{entry.unit}: items {entry.start} to {entry.stop} of {entry.source} ({entry.source_bytes:,} bytes)"


def _left_out_of(folder: Path, sample_id: str) -> tuple[LeftOut, ...]:
    """What the lists of a dataset say; lists of other makers may lack columns, and those without ids say nothing."""
    outcomes = {folder / REJECTS_NAME: "rejected", folder / FILTERED_NAME: "filtered", folder / REMOVED_NAME: REMOVED}
    lists = [path for path in outcomes if path.is_file() and _has_ids(path)]
    found_rows = [
        (outcomes[found.path], _LEFT_OUT | row)
        for found in find_ids(lists, [sample_id])
        for row in found.table.to_pylist()
    ]
    return tuple(
        LeftOut(
            str(folder),
            row["sample_id"],
            outcome,
            row["reason"],
            row["error"] or row["message"],
            *(row[name] for name in ("source_file", "member", "offset", "unit")),
        )
        for outcome, row in found_rows
        # What was removed is among the filtered too.
        if outcome == REMOVED or row["reason"] != REMOVED
    )


def _has_ids(path: Path) -> bool:
    with path.open("rb") as file:
        return "sample_id" in pq.read_schema(file).names


def _id_files(folder: Path, manifest: Manifest) -> list[Path]:
    shards = [folder / shard.path for shard in manifest.shards]
    return [sidecar_path(shard) for shard in shards] if manifest.kind == "packed" else shards
