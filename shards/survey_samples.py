"""Numbers of sample shards that their manifest does not hold: durations, lengths, quality (see :mod:`shards.survey`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.inspection import spread
from shards.manifest import Manifest
from shards.modality import MEDIA
from shards.storage import arrow_source, is_remote
from shards.survey import MAX_SHARDS, Measured, Numbers, Survey

MAX_SAMPLES = 8192
MAX_REMOTE_SHARDS = 8
"""Of a remote shard some 8 MB are fetched, of a local one next to nothing."""

pc: Any = pyarrow.compute  # made when imported, so that type checkers do not see its functions


def survey_samples(
    folder: Path, manifest: Manifest, *, max_samples: int = MAX_SAMPLES, max_shards: int | None = None
) -> Survey:
    """Durations, lengths and quality numbers of samples.

    Args:
        max_shards: by default 32, of a remote dataset 8.

    Raises:
        DatasetError: a shard that is looked at is missing or damaged.
    """
    limit = max_shards or (MAX_REMOTE_SHARDS if is_remote(folder) else MAX_SHARDS)
    shards, total = manifest.shards, manifest.num_rows
    chosen = spread(len(shards), limit)
    everything = len(chosen) == len(shards) and total <= max_samples
    each = max(1, max_samples // max(1, len(chosen)))
    found = _Samples()
    for number in chosen:
        path = folder / shards[number].path
        try:
            for batch in _sample_batches(path, None if everything else each):
                found.add(batch)
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path}: expected a Parquet shard, found {error}; run anygpt-verify") from error
    return Survey(found.count, total, len(chosen), len(shards), tuple(found.measured()))


def _sample_batches(path: Path, wanted: int | None) -> Iterator[pa.RecordBatch]:
    """All rows of a shard, or about ``wanted``: the beginnings of up to four row groups, spread evenly."""
    with pq.ParquetFile(arrow_source(path), buffer_size=1 << 20) as file:
        groups = spread(file.num_row_groups, file.num_row_groups if wanted is None else 4)
        for group in groups:
            left = file.metadata.row_group(group).num_rows if wanted is None else max(1, wanted // len(groups))
            for batch in file.iter_batches(min(left, 1024) or 1, row_groups=[group], columns=["segments", "quality"]):
                yield batch.slice(0, left)
                left -= batch.num_rows
                if left <= 0:
                    break


class _Samples:
    """Numbers of samples, gathered batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: dict[tuple[str, str, str, bool], list[Numbers]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        self.count += batch.num_rows
        segments: Any = batch.column("segments")
        flat: Any = segments.flatten()
        of_sample = _to_numpy(pc.fill_null(pc.list_value_length(segments), 0))
        self._add_lengths(flat, np.repeat(np.arange(batch.num_rows), of_sample), batch.num_rows)
        for modality in MEDIA:
            of_it = flat.filter(pc.equal(flat.field("modality"), str(modality)))
            durations = _to_numpy(of_it.field("duration_s").drop_null())
            self._keep("Duration", str(modality), "s", durations, whole=False)
        quality: dict[str, list[float]] = {}
        for pairs in batch.column("quality").to_pylist():
            for name, value in pairs or ():
                quality.setdefault(name, []).append(value)
        for name, values in quality.items():
            self._keep("Quality", name, "", np.array(values, np.float64), whole=False)

    def measured(self) -> Iterator[Measured]:
        """In the order of titles, quality numbers by name."""
        order = ["Media per sample", "Codes per sample", "Characters of text per sample", "Duration", "Quality"]
        for key in sorted(self._parts, key=lambda key: (order.index(key[0]), key[1])):
            title, part, unit, whole = key
            things = "media" if title == "Duration" else "samples"
            yield Measured(title, part, unit, things, np.concatenate(self._parts[key]), whole)

    def _add_lengths(self, flat: Any, sample: Numbers, num_samples: int) -> None:
        has_codes = _to_numpy(pc.is_valid(flat.field("codes")))
        codes = _to_numpy(pc.fill_null(pc.list_value_length(flat.field("codes")), 0))
        characters = _to_numpy(pc.fill_null(pc.utf8_length(flat.field("text")), 0))
        for title, unit, of_segments in (
            ("Media per sample", "media", has_codes),
            ("Codes per sample", "codes", codes),
            ("Characters of text per sample", "characters", characters),
        ):
            sums = np.bincount(sample, weights=of_segments, minlength=num_samples).astype(np.int64)
            self._keep(title, "", unit, sums, whole=True)

    def _keep(self, title: str, part: str, unit: str, values: Numbers, *, whole: bool) -> None:
        if len(values):
            self._parts.setdefault((title, part, unit, whole), []).append(values)


def _to_numpy(array: Any) -> Numbers:
    return array.to_numpy(zero_copy_only=False)
