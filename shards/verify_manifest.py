"""What a manifest says of the dataset as a whole: inputs, what was left out, rows and ids by where they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.faults import Fault, ShardFindings
from shards.left_out import FILTERED_NAME, REJECTS_NAME
from shards.manifest import MANIFEST_NAME, Manifest
from shards.verify_files import UNREADABLE, without_path
from shards.verify_samples import open_parquet


def manifest_faults(folder: Path, manifest: Manifest, findings: Sequence[ShardFindings]) -> Iterator[Fault]:
    """Sums that do not agree with each other, with the lists of what was left out, or with the shards.

    Args:
        findings: of every shard; the shards are compared only if each could be read to its end.
    """
    paths = Counter(entry.path for entry in manifest.shards)
    for path, count in paths.items():
        if count > 1:
            yield Fault(path, f"the manifest names it {count} times")
    counts = manifest.counts
    if {"inputs", "written", "filtered", "rejected"} <= set(counts):
        parts = counts["written"] + sum(counts["filtered"].values()) + sum(counts["rejected"].values())
        if counts["inputs"] != parts:
            yield Fault(MANIFEST_NAME, f"inputs {counts['inputs']} are not written + filtered + rejected = {parts}")
    yield from _left_out_faults(folder, manifest)
    if len(findings) == len(manifest.shards) and all(found.complete for found in findings):
        yield from (_packed_sums if manifest.kind == "packed" else _sample_sums)(manifest, findings)


def _left_out_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """Of packed datasets the filtered are counted and not listed."""
    listed = {REJECTS_NAME: "rejected"} | ({FILTERED_NAME: "filtered"} if manifest.kind == "samples" else {})
    for name, key in listed.items():
        said = {reason: count for reason, count in manifest.counts.get(key, {}).items() if count}
        path = folder / name
        if not path.is_file():
            if said:
                yield Fault(name, f"the manifest says {said} {key}, the list of them is missing")
            continue
        try:
            found = _count_reasons(path)
        except UNREADABLE as error:
            yield Fault(name, f"cannot be read: {without_path(error, path)}")
            continue
        if found != said and key in manifest.counts:
            yield Fault(name, f"the manifest says {said} {key}, it lists {found}")


def _count_reasons(path: Path) -> dict[str, int]:
    total: Counter[str] = Counter()
    with open_parquet(path) as file:
        for batch in file.iter_batches(columns=["reason"]):
            for reason in batch.column("reason").value_counts().to_pylist():
                total[str(reason["values"])] += int(reason["counts"])
    return dict(total)


def _sample_sums(manifest: Manifest, findings: Sequence[ShardFindings]) -> Iterator[Fault]:
    rows, written = sum(found.num_rows for found in findings), manifest.counts.get("written")
    if written is not None and written != rows:
        yield Fault(MANIFEST_NAME, f"written {written} samples, the shards hold {rows}")


def _packed_sums(manifest: Manifest, findings: Sequence[ShardFindings]) -> Iterator[Fault]:
    by_dataset: Counter[str] = Counter()
    by_direction: Counter[str] = Counter()
    for found in findings:
        for (dataset, direction), count in found.tokens_by_origin.items():
            by_dataset[dataset] += count
            by_direction[direction] += count
    extra = manifest.extra
    by_source: Mapping[str, Mapping[str, int]] = extra.get("tokens_by_source", {})
    sums: dict[str, tuple[Any, Mapping[str, int]]] = {
        "sources": (extra.get("sources"), by_dataset),
        "tokens_by_source": (
            {name: sum(tokens.values()) for name, tokens in by_source.items()} if by_source else None,
            by_dataset,
        ),
        "tokens_by_direction": (extra.get("tokens_by_direction"), by_direction),
    }
    for name, (said, held) in sums.items():
        if isinstance(said, dict) and _filled(said) != _filled(held):
            yield Fault(MANIFEST_NAME, f"{name} says {_filled(said)} tokens, the sidecars hold {_filled(held)}")


def _filled(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}
