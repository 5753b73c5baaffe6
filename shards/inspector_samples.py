"""Samples on a page, and what a dataset left out: a table for each reason."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.inspection import spread
from shards.inspector_media import Decoders
from shards.inspector_page import chip, colour, data_attributes, in_words, table
from shards.left_out import FILTERED_NAME, REJECTS_NAME
from shards.manifest import Manifest
from shards.records import Segment, TokenizedSample
from shards.storage import arrow_source

MAX_SEGMENTS = 200
MAX_CHARACTERS = 4000
"""Of one text; a page must open on a phone."""
MAX_GROUPS = 8
"""Row groups of a list of what was left out that are looked at."""


@dataclass(frozen=True, slots=True)
class LeftOutList:
    """Some rows of ``rejects.parquet`` or ``filtered.parquet``.

    Attributes:
        outcome: ``rejected`` or ``filtered``.
        total: rows of the whole list; ``looked_at`` of them were read.
        by_reason: reason -> rows to show, in the order of the list.
    """

    outcome: str
    total: int
    looked_at: int
    by_reason: Mapping[str, Sequence[Mapping[str, Any]]]


def sample_html(sample: TokenizedSample, decoders: Decoders, *, whole: bool = False) -> str:
    """One sample: segments, where it came from, its quality numbers.

    Args:
        whole: show texts to their end, and quality numbers as a table.
    """
    shown = sample.segments if whole else sample.segments[:MAX_SEGMENTS]
    segments = "".join(_segment(segment, sample.sample_id, decoders, whole=whole) for segment in shown)
    if rest := len(sample.segments) - len(shown):
        segments += f'<p class="quiet">and {rest:,} more segments</p>'
    where = sample.provenance
    source = " · ".join(part for part in (where.source_file, where.member, where.licence) if part)
    modalities = tuple(dict.fromkeys(str(segment.modality) for segment in sample.segments))
    data = data_attributes(modality=modalities, split=(sample.split,))
    return (
        f'<article class="row"{data}><h3 class="mono">{html.escape(sample.sample_id)}</h3> '
        f'<span class="quiet">{html.escape(sample.corpus)} / {html.escape(sample.split)} · {html.escape(source)}</span>'
        f'<div class="flow">{segments}</div>{_quality(sample.quality)}{_provenance(sample) if whole else ""}</article>'
    )


def read_left_out(folder: Path, *, each: int) -> list[LeftOutList]:
    """The lists of a dataset, of each reason the first ``each`` rows that are met.

    Of a long list, row groups spread evenly over it are read.

    Raises:
        DatasetError: a list is damaged.
    """
    names = {"rejected": REJECTS_NAME, "filtered": FILTERED_NAME}
    return [_read_list(folder / name, outcome, each) for outcome, name in names.items() if (folder / name).is_file()]


def left_out_html(lists: Sequence[LeftOutList], manifest: Manifest) -> str:
    """A table for each reason, with the count that the manifest states."""
    parts: list[str] = []
    for found in lists:
        counts: Mapping[str, int] = manifest.counts.get(found.outcome, {})
        if found.looked_at < found.total:
            parts.append(
                f'<p class="quiet">{found.outcome}: {found.looked_at:,} of {found.total:,} entries were looked at, '
                "spread evenly</p>"
            )
        for reason, rows in sorted(found.by_reason.items()):
            count = f"{counts[reason]:,}" if reason in counts else "some"
            heading = f"{found.outcome}: {in_words(reason)} · {count}, {len(rows)} shown"
            summary = f"<summary>{html.escape(heading)}</summary>"
            parts.append(f'<details class="fold">{summary}{_entries(rows)}</details>')
    return "".join(parts)


def _entries(rows: Sequence[Mapping[str, Any]]) -> str:
    def place(row: Mapping[str, Any]) -> str:
        parts = (row.get("source_file"), row.get("member"), row.get("unit"))
        offset = f"offset {row['offset']:,}" if row.get("offset") else ""
        return " · ".join(str(part) for part in (*parts, offset) if part)

    cells = [[_cut(str(row.get("sample_id", "")), 200), _error(row), _cut(place(row), 300)] for row in rows]
    return table(["sample", "what was found", "where"], cells)


def _error(row: Mapping[str, Any]) -> str:
    draw = f"draw {row['draw']}: " if row.get("draw") else ""
    return draw + _cut(str(row.get("error") or row.get("message") or ""), 400)


def _read_list(path: Path, outcome: str, each: int) -> LeftOutList:
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    looked_at = 0
    try:
        with pq.ParquetFile(arrow_source(path)) as file:
            total = file.metadata.num_rows
            for group in spread(file.num_row_groups, MAX_GROUPS):
                for batch in file.iter_batches(1 << 16, row_groups=[group]):
                    looked_at += batch.num_rows
                    _take_each(batch, by_reason, each)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DatasetError(f"{path}: expected a list of what was left out, found {error}; run anygpt-verify") from error
    return LeftOutList(outcome, total, looked_at, by_reason)


def _take_each(batch: pa.RecordBatch, by_reason: dict[str, list[Mapping[str, Any]]], each: int) -> None:
    """Add the first rows of each reason, until there are ``each``; all others stay columns."""
    room = {reason: each - len(rows) for reason, rows in by_reason.items()}
    chosen: list[int] = []
    for place, reason in enumerate(batch.column("reason").to_pylist()):
        if room.setdefault(reason, each) > 0:
            room[reason] -= 1
            chosen.append(place)
    for row in batch.take(pa.array(chosen, pa.int64())).to_pylist():
        by_reason.setdefault(row["reason"], []).append(row)


def _segment(segment: Segment, title: str, decoders: Decoders, *, whole: bool) -> str:
    if segment.codes is None:
        text = segment.text or ""
        said = html.escape(text if whole else _cut(text, MAX_CHARACTERS))
        return f'<p>{chip(segment.slot)} <span class="say">{said}</span></p>'
    shown = decoders.show(segment.modality, segment.codes, f"{segment.slot} of {title}")
    length = f"{segment.duration_s:.2f} s · " if segment.duration_s is not None else ""
    frames, levels = segment.codes.shape
    caption = f"{html.escape(segment.slot)} · {length}{frames:,} × {levels} codes"
    return f'<figure class="m-{colour(segment.modality)}">{shown}<figcaption>{caption}</figcaption></figure>'


def _quality(quality: Mapping[str, float]) -> str:
    if not quality:
        return ""
    entries = "".join(
        f"<div><dt>{html.escape(in_words(name))}</dt><dd>{value:.5g}</dd></div>" for name, value in quality.items()
    )
    return f'<dl class="quality">{entries}</dl>'


def _provenance(sample: TokenizedSample) -> str:
    where = sample.provenance
    facts = {
        "source file": where.source_file,
        "member": where.member,
        "offset": f"{where.offset:,}",
        "url": where.url,
        "licence": where.licence or "not stated",
    }
    media = [(segment.slot, segment.media_sha256) for segment in sample.segments if segment.media_sha256]
    rows = [(name, value) for name, value in facts.items() if value]
    rows += [(f"sha256 of {slot}", sha256) for slot, sha256 in media]
    return table(["came from", ""], rows, name="where the sample came from")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} … and {len(text) - length:,} more characters"
