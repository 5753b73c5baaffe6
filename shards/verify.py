"""Prove that a dataset is whole: its bytes, its numbers, and the law of Table 1.

Packed shards: checksums, ids in range, spans and starts in order, every medium between its two markers, 32 codes per
picture, whole frames of speech and music with the levels in order, sidecars that tell of exactly the documents, and the
manifest's sums. Sample shards: checksums, schema, rates, codes in their codebooks, no sample id twice. A fault names the
file and the rows.

Shards are looked at one by one (:mod:`shards.verify_packed`, :mod:`shards.verify_samples`), in as many processes as
wanted, one shard per process at a time; what comes back is small, and its order is the manifest's, so that any number of
processes says the same. Memory in this process: the manifest, and eight bytes a sample (:mod:`shards.sample_ids`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ConfigError, DatasetError
from shards.faults import Fault, ShardFindings
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.sample_ids import find_repeated
from shards.storage import local_only
from shards.verify_files import UNREADABLE
from shards.verify_manifest import manifest_faults
from shards.verify_packed import look_at_packed
from shards.verify_samples import look_at_samples, open_parquet
from shards.worker_pool import WorkerDied, map_in_processes, usable_cores

BYTES_PER_WORKER = 64 << 20
"""A process that has less to look at takes longer to start than to look."""

Progress = Callable[[int], object]
"""Is told the bytes of every shard that was looked at."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and what was found.

    Attributes:
        num_shards: that were looked at, of ``shards_in_all``.
        documents: placements of packed rows, or samples.
        tokens: by modality; for sample shards, code frames by modality.
    """

    folder: Path
    kind: str
    num_shards: int
    shards_in_all: int
    num_rows: int
    documents: int
    tokens: dict[str, int]
    faults: tuple[Fault, ...] = field(default=())

    @property
    def is_part(self) -> bool:
        """Whether some shards were not looked at."""
        return self.num_shards < self.shards_in_all

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return {
            "dataset": str(self.folder),
            "kind": self.kind,
            "whole": not self.faults and not self.is_part,
            "shards": self.num_shards,
            "shards_in_all": self.shards_in_all,
            "rows": self.num_rows,
            "documents": self.documents,
            "tokens": dict(sorted(self.tokens.items())),
            "faults": [fault.to_json() for fault in self.faults],
        }


def verify_dataset(
    folder: Path,
    *,
    workers: int | None = 1,
    limit: int | None = None,
    progress: Progress = lambda num_bytes: None,
    manifest: Manifest | None = None,
) -> Verification:
    """Look at every byte of a dataset.

    Args:
        workers: processes; 1 looks in this very one, None takes the usable cores, fewer for a small dataset.
        limit: look at this many shards only, spread evenly over the dataset.
        manifest: if it was read already.

    Raises:
        ConfigError: packed shards in an object store, or a store that cannot be read.
        DatasetError: if there is no manifest to compare with; every other fault is returned.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    if manifest.kind not in {"packed", "samples"}:
        raise DatasetError(f"{folder}: expected a dataset of kind 'packed' or 'samples', found {manifest.kind!r}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: expected at least 1 shard, found {limit}; leave it out to look at all of them")
    entries = sampled(manifest.shards, limit)
    if workers is None:
        workers = min(usable_cores(), max(1, sum(entry.num_bytes for entry in entries) // BYTES_PER_WORKER))
    findings = list(look_at_all(_look(folder, manifest), entries, workers=workers, progress=progress))
    tokens: Counter[str] = Counter()
    for found in findings:
        tokens.update(found.tokens)
    faults = [fault for found in findings for fault in found.faults]
    faults += _repeated_samples(folder, entries, findings)
    faults += manifest_faults(folder, manifest, findings)
    return Verification(
        folder,
        manifest.kind,
        len(entries),
        len(manifest.shards),
        sum(found.num_rows for found in findings),
        sum(found.documents for found in findings),
        dict(tokens),
        tuple(faults),
    )


def sampled(entries: Sequence[ShardEntry], limit: int | None) -> Sequence[ShardEntry]:
    """All entries, or ``limit`` of them, spread evenly from the first to the last."""
    if limit is None or limit >= len(entries):
        return entries
    return [entries[number] for number in np.linspace(0, len(entries) - 1, limit).round().astype(int).tolist()]


def _look(folder: Path, manifest: Manifest) -> Callable[[ShardEntry], ShardFindings]:
    if manifest.kind == "samples":
        return partial(look_at_samples, folder)
    # The list of shards stays here: every process is told of one at a time.
    return partial(look_at_packed, local_only(folder, "packed shards"), replace(manifest, shards=()))


def look_at_all(
    look: Callable[[ShardEntry], ShardFindings], entries: Sequence[ShardEntry], *, workers: int, progress: Progress
) -> Iterator[ShardFindings]:
    """What was found in every shard, in the order of the entries; a shard that ends its process twice has a fault.

    Args:
        workers: 1 looks in this process, which a deadly shard ends too.
    """
    if workers <= 1:
        for entry in entries:
            yield look(entry)
            progress(entry.num_bytes)
        return
    results = map_in_processes(
        look, entries, workers=workers, on_done=lambda number: progress(entries[number].num_bytes)
    )
    for entry, found in zip(entries, results, strict=True):
        if isinstance(found, WorkerDied):
            found = ShardFindings(faults=(Fault(entry.path, f"cannot be looked at: {found}, twice"),))
        yield found


def _repeated_samples(
    folder: Path, entries: Sequence[ShardEntry], findings: Sequence[ShardFindings]
) -> Iterator[Fault]:
    def read_ids(number: int) -> Iterator[tuple[int, Any]]:
        first = 0
        with open_parquet(folder / entries[number].path) as file:
            for batch in file.iter_batches(columns=["sample_id"]):
                yield first, batch.column("sample_id")
                first += batch.num_rows

    try:
        for number, rows in find_repeated([found.id_hashes for found in findings], read_ids):
            yield Fault(entries[number].path, "sample ids that are there twice", rows)
    except UNREADABLE as error:
        yield Fault("manifest.json", f"samples that may be there twice cannot be read again: {error}")
