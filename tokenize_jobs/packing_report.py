"""What a packing run made: the rejects, the manifest of each dataset, and the report over all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.manifest import Manifest, write_manifest
from shards.packed import SIDECAR_SUFFIX
from shards.writer import commit_bytes, commit_table
from tokenize_jobs.packing_unit import UnitResult, check_budget

REPORT_NAME = "report.json"
REJECTS_NAME = "rejects.parquet"
REJECTS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def finish_dataset(folder: Path, manifest: Manifest, results: Sequence[UnitResult], reject_budget: float) -> Manifest:
    """Commit ``rejects.parquet``, then the manifest.

    Args:
        manifest: what is known before the units ran: fingerprint, vocabulary, config.
        results: of every unit, in unit order.

    Raises:
        RejectBudgetExceeded: the dataset stays without a manifest.
    """
    rejects = [reject for result in results for reject in result.rejects]
    check_budget(rejects, sum(result.inputs for result in results), reject_budget, folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECTS_SCHEMA)
    commit_table(folder / REJECTS_NAME, table)
    shards = tuple(result.shard for result in results if result.shard is not None)
    finished = replace(manifest, shards=shards, counts=_counts(results))
    finished = replace(finished, extra=_extra(finished, results))
    write_manifest(folder, finished)
    return finished


def _counts(results: Sequence[UnitResult]) -> dict[str, Any]:
    """In documents: samples x draws. ``inputs = written + filtered + rejected``, asserted."""
    counts = {
        "inputs": sum(result.inputs for result in results),
        "written": sum(result.written for result in results),
        "filtered": _sum(result.filtered for result in results),
        "rejected": _sum(result.rejected for result in results),
    }
    _check_counts(counts)
    return counts


def _check_counts(counts: Mapping[str, Any]) -> None:
    left = counts["written"] + sum(counts["filtered"].values()) + sum(counts["rejected"].values())
    assert counts["inputs"] == left, f"inputs {counts['inputs']} != written + filtered + rejected = {left}"


def _extra(manifest: Manifest, results: Sequence[UnitResult]) -> dict[str, Any]:
    sequence_length = int(manifest.config["sequence_length"])
    num_tokens = sum(manifest.tokens.values())
    return {
        "sequence_length": sequence_length,
        "fill": fill(num_tokens, manifest.num_rows, sequence_length),
        "cut": sum(result.cut for result in results),
        "split": sum(result.split for result in results),
        "sources": _sum(result.tokens_by_source for result in results),
        "tokens_by_direction": _sum(result.tokens_by_direction for result in results),
        "documents_by_direction": _sum(result.documents_by_direction for result in results),
        "sidecars": {
            Path(result.shard.path).stem + SIDECAR_SUFFIX: result.sidecar_sha256 for result in results if result.shard
        },
    }


def fill(num_tokens: int, num_rows: int, sequence_length: int) -> float:
    """Share of the rows' places that hold an id; 0 for no rows."""
    return round(num_tokens / (num_rows * sequence_length), 6) if num_rows else 0.0


def summarize(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """One report over all datasets of a run, from their manifests alone."""
    datasets = {name: _one(manifest) for name, manifest in manifests.items()}
    parts = list(datasets.values())
    places = sum(part["rows"] * part["sequence_length"] for part in parts)
    num_tokens = sum(sum(part["tokens"].values()) for part in parts)
    report: dict[str, Any] = {
        **{key: sum(part[key] for part in parts) for key in ("inputs", "written", "rows", "cut", "split")},
        **{
            key: _sum(part[key] for part in parts)
            for key in ("filtered", "rejected", "tokens", "tokens_by_direction", "documents_by_direction")
        },
        "fill": round(num_tokens / places, 6) if places else 0.0,
        "datasets": datasets,
    }
    _check_counts(report)
    return report


def _one(manifest: Manifest) -> dict[str, Any]:
    kept = ("sequence_length", "fill", "cut", "split", "sources", "tokens_by_direction", "documents_by_direction")
    return {
        **manifest.counts,
        "rows": manifest.num_rows,
        "tokens": manifest.tokens,
        **{key: manifest.extra[key] for key in kept},
    }


def write_report(output: Path, report: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Commit ``report.json``: the sums, and how long this run took to make what was missing."""
    timed = {**report, "seconds": round(seconds, 3)}
    commit_bytes(output / REPORT_NAME, (json.dumps(timed, indent=1, ensure_ascii=False) + "\n").encode())
    return timed


def read_report(output: Path) -> dict[str, Any] | None:
    """The stored report, or None."""
    path = output / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a table for a terminal."""
    lines = [f"{'dataset':<28}{'documents':>12}{'rows':>9}{'fill':>9}{'rejected':>10}{'filtered':>10}"]
    for name, part in [*report["datasets"].items(), ("all", report)]:
        rejected, filtered = sum(part["rejected"].values()), sum(part["filtered"].values())
        lines.append(
            f"{name:<28}{part['written']:>12,}{part['rows']:>9,}{part['fill']:>9.2%}{rejected:>10,}{filtered:>10,}"
        )
    tokens = ", ".join(f"{modality} {count:,}" for modality, count in sorted(report["tokens"].items()))
    lines.append(f"tokens: {tokens}; cut {report['cut']}, split {report['split']}; {report['seconds']:.1f} s")
    return "\n".join(lines)


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
