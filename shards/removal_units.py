"""Steps 2 to 4 of a removal (:mod:`shards.removal`): the manifest aside, units rebuilt, the dataset finished again.

Each step can be done twice: what a unit becomes follows from its files and its take-downs, and rows that are gone
already are not missed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.ledger import LEDGER, Entry, commit_entry, fold_ledger, read_entries
from shards.left_out import PART_SCHEMA, REMOVED, join_parts, part_path
from shards.lookup import matches
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from shards.modality import Modality
from shards.records import SAMPLE_SCHEMA
from shards.summary import summarize
from shards.writer import commit_bytes, commit_table, file_sha256

pc: Any = pyarrow.compute  # made when imported, so that type checkers do not see its functions
REPORT_NAME = "report.json"
OUTDATED_NAMES = ("datacard.md", "report.html")
"""What people read of a dataset, made by the job above from all of its samples: it goes, rather than say what is gone."""
_PLACE = ("sample_id", "source_file", "member", "offset")


def read_manifest_aside(folder: Path) -> Manifest | None:
    """The manifest that a killed removal has set aside, if it did."""
    return read_manifest(folder / LEDGER) if (folder / LEDGER / MANIFEST_NAME).is_file() else None


def set_manifest_aside(folder: Path) -> None:
    """From here on the folder is no dataset until it is finished again."""
    path = folder / MANIFEST_NAME
    if path.is_file():
        commit_bytes(folder / LEDGER / MANIFEST_NAME, path.read_bytes())
        path.unlink()


def is_open(folder: Path, entry: Entry, removals: int) -> bool:
    """Whether a unit's take-downs are recorded, but not all carried out."""
    if entry.filtered.get(REMOVED, 0) < removals:
        return True
    return bool(removals) and entry.shard is None and _shard_path(folder, entry).is_file()


def rebuild(folder: Path, entry: Entry, gone: pa.Table) -> Entry:
    """Commit a unit without what is gone: shard, part of the left-out, entry; an emptied shard goes last.

    Args:
        gone: the unit's take-downs, rows of ``REMOVED_SCHEMA``.

    Raises:
        DatasetError: the unit's files do not hold what its entry says.
    """
    path, part = _shard_path(folder, entry), part_path(folder, entry.unit)
    before = _read(path, SAMPLE_SCHEMA) if path.is_file() else SAMPLE_SCHEMA.empty_table()
    kept = without(before, gone["sample_id"].to_pylist())
    left_out = _left_out(_read(part, PART_SCHEMA) if part.is_file() else PART_SCHEMA.empty_table(), gone)
    done = _entry(entry, kept, left_out)
    if len(kept):
        # Not written where no row goes: what was rejected may be removed too, and rebuilding may have been done.
        sha256 = commit_table(path, kept) if len(kept) < len(before) else file_sha256(path)
        name = path.relative_to(folder).as_posix()
        done = replace(done, shard=ShardEntry(name, len(kept), path.stat().st_size, sha256, done.tokens))
    done = replace(done, left_out_sha256=commit_table(part, left_out))
    commit_entry(folder, done)
    if done.shard is None:
        path.unlink(missing_ok=True)
    return done


def without(table: pa.Table, ids: list[str]) -> pa.Table:
    """The rows of other samples, as one chunk, so that the bytes do not tell what was there."""
    return table.filter(pc.invert(matches(table["sample_id"], ids))).combine_chunks()


def finish(folder: Path) -> bool:
    """Fold the ledger, join the parts, bring report and manifest up to date; False where tokenization is not finished."""
    fold_ledger(folder)
    manifest = read_manifest_aside(folder)
    if manifest is None:
        return (folder / MANIFEST_NAME).is_file()
    summary = summarize(read_entries(folder))
    if summary.sums["units"] == manifest.extra.get("units"):
        join_parts(summary.parts(folder), folder)
        _update_report(folder, summary.sums)
        for name in OUTDATED_NAMES:
            (folder / name).unlink(missing_ok=True)
        extra = {**manifest.extra, **summary.extra}
        write_manifest(folder, replace(manifest, shards=summary.shards, counts=summary.counts, extra=extra))
    (folder / LEDGER / MANIFEST_NAME).unlink()
    return (folder / MANIFEST_NAME).is_file()


def _shard_path(folder: Path, entry: Entry) -> Path:
    return folder / (entry.shard.path if entry.shard else f"shards/{entry.unit}.parquet")


def _left_out(part: pa.Table, gone: pa.Table) -> pa.Table:
    """The unit's left-out rows with the removed ones last, in the order of their ids: one order for any history."""
    others = part.filter(pc.invert(matches(part["sample_id"], gone["sample_id"].to_pylist())))
    is_removed = pc.equal(others["reason"], REMOVED)
    rows = [*others.filter(is_removed).to_pylist(), *({**row, "rejected": False} for row in gone.to_pylist())]
    rows = [{name: row[name] for name in PART_SCHEMA.names} for row in rows]
    rows.sort(key=lambda row: tuple(row[name] for name in _PLACE))
    removed = pa.Table.from_pylist(rows, schema=PART_SCHEMA)
    return pa.concat_tables([others.filter(pc.invert(is_removed)), removed]).combine_chunks()


def _entry(entry: Entry, kept: pa.Table, left_out: pa.Table) -> Entry:
    """The counts of a unit's entry; its files are not written yet."""
    if entry.inputs != len(kept) + len(left_out):
        raise DatasetError(
            f"{entry.unit}: expected {entry.inputs} inputs, found {len(kept)} written and {len(left_out)} left out; "
            "its files are not those of its ledger entry: run anygpt-tokenize again first"
        )
    reasons = list(zip(left_out["rejected"].to_pylist(), left_out["reason"].to_pylist(), strict=True))
    return replace(
        entry,
        written=len(kept),
        filtered=_sorted(Counter(reason for is_rejected, reason in reasons if not is_rejected)),
        rejected=_sorted(Counter(reason for is_rejected, reason in reasons if is_rejected)),
        shard=None,
        **_media_facts(kept),
    )


def _media_facts(table: pa.Table) -> dict[str, Any]:
    """``tokens``, ``seconds`` and ``images`` of an entry; seconds are added in the order of the rows, as they were made."""
    tokens: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    images = 0
    for chunk in table["segments"].chunks:
        flat = chunk.flatten()
        columns = [
            flat.field("modality"),
            flat.field("codes").value_lengths(),
            *map(flat.field, ("levels", "duration_s")),
        ]
        for modality, codes, levels, duration_s in zip(*(column.to_pylist() for column in columns), strict=True):
            if codes is not None:
                tokens[modality] += codes // levels * Modality(modality).rate.levels_read
            if duration_s is not None:
                seconds[modality] = seconds.get(modality, 0.0) + duration_s
            images += modality == Modality.IMAGE
    return {"tokens": dict(sorted(tokens.items())), "seconds": dict(sorted(seconds.items())), "images": images}


def _update_report(folder: Path, sums: Mapping[str, Any]) -> None:
    """Bring the sums of ``report.json`` up to date; what it says of the run that made the dataset stays."""
    path = folder / REPORT_NAME
    if not path.is_file():
        return
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    report |= {key: value for key, value in sums.items() if key in report}
    commit_bytes(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def _sorted(counts: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(counts.items()))


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    with path.open("rb") as file:
        table = pq.read_table(file)
    return pa.Table.from_arrays([table[name] for name in schema.names], schema=schema)
