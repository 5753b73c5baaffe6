"""Reading sample shards back, in the order of their manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.manifest import read_manifest
from shards.records import TokenizedSample, table_to_samples
from shards.storage import arrow_source


def read_samples(folder: Path) -> Iterator[TokenizedSample]:
    """Every sample of a dataset of sample shards, shard by shard.

    Raises:
        DatasetError: no manifest, packed rows instead of samples, or a shard that is missing or cut.
    """
    manifest = read_manifest(folder)
    if manifest.kind != "samples":
        raise DatasetError(f"{folder}: expected a dataset of samples, found one of kind {manifest.kind!r}")
    for shard in manifest.shards:
        path = folder / shard.path
        try:
            table = pq.ParquetFile(arrow_source(path)).read()  # pq.read_table imports pandas
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{path}: expected a Parquet shard, found {error}; run anygpt-verify {folder}"
            ) from error
        yield from table_to_samples(table)
