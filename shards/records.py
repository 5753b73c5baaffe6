"""Sample shards: what one tokenized sample is, and its Parquet schema (stage A's output, see FORMAT.md).

A sample is an ordered list of segments. Text stays text; media are codec-local codes ``(frames, levels)``, stored
flat in frame order next to ``levels``. Everything opens in pyarrow, pandas, polars and duckdb without this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shards.vocabulary import Codes, Modality

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a sample, text or media.

    Attributes:
        slot: its role in the sample: ``caption``, ``image``, ``speech``, ``transcript``, ``music``, ``text`` (documents),
            ``user`` / ``assistant`` (dialogues: consecutive segments with one slot make one turn).
        text: the text of a text segment, else None.
        codes: (frames, levels) uint16 of a media segment, else None.
        duration_s: length of a sound, None for pictures and text.
        media_sha256: of the raw media bytes, empty for text.
    """

    slot: str
    modality: Modality
    text: str | None = None
    codes: Codes | None = None
    duration_s: float | None = None
    media_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a sample came from: file relative to the corpus root, member of an archive, offset within it."""

    source_file: str
    member: str = ""
    offset: int = 0
    url: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """One row of a sample shard."""

    sample_id: str
    corpus: str
    split: str
    segments: tuple[Segment, ...]
    provenance: Provenance
    quality: Mapping[str, float] = field(default_factory=dict[str, float])


_SEGMENT = pa.struct(
    [
        pa.field("slot", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("text", pa.string()),
        pa.field("codes", pa.list_(pa.uint16())),
        pa.field("levels", pa.uint8()),
        pa.field("duration_s", pa.float64()),
        pa.field("media_sha256", pa.string()),
    ]
)
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("segments", pa.list_(_SEGMENT), nullable=False),
        pa.field("source_file", pa.string()),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("url", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("quality", pa.map_(pa.string(), pa.float64())),
    ]
)


def samples_to_table(samples: Iterable[TokenizedSample]) -> pa.Table:
    """Rows of :data:`SAMPLE_SCHEMA`, in the order given."""
    return pa.Table.from_pylist([_sample_to_row(sample) for sample in samples], schema=SAMPLE_SCHEMA)


def table_to_samples(table: pa.Table) -> Iterator[TokenizedSample]:
    """Inverse of :func:`samples_to_table`."""
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield _row_to_sample(row)


def _sample_to_row(sample: TokenizedSample) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "corpus": sample.corpus,
        "split": sample.split,
        "segments": [_segment_to_row(segment) for segment in sample.segments],
        "source_file": sample.provenance.source_file,
        "member": sample.provenance.member,
        "offset": sample.provenance.offset,
        "url": sample.provenance.url,
        "licence": sample.provenance.licence,
        "quality": sorted(sample.quality.items()),
    }


def _segment_to_row(segment: Segment) -> dict[str, Any]:
    codes = segment.codes
    return {
        "slot": segment.slot,
        "modality": str(segment.modality),
        "text": segment.text,
        "codes": None if codes is None else np.ascontiguousarray(codes, np.uint16).reshape(-1),
        "levels": None if codes is None else codes.shape[1],
        "duration_s": segment.duration_s,
        "media_sha256": segment.media_sha256,
    }


def _row_to_sample(row: Mapping[str, Any]) -> TokenizedSample:
    provenance = Provenance(row["source_file"], row["member"], row["offset"], row["url"], row["licence"])
    segments = tuple(_row_to_segment(segment) for segment in row["segments"])
    return TokenizedSample(
        row["sample_id"], row["corpus"], row["split"], segments, provenance, dict(row["quality"] or [])
    )


def _row_to_segment(row: Mapping[str, Any]) -> Segment:
    codes = None
    if row["codes"] is not None:
        codes = np.array(row["codes"], np.uint16).reshape(-1, row["levels"])
    return Segment(row["slot"], Modality(row["modality"]), row["text"], codes, row["duration_s"], row["media_sha256"])
