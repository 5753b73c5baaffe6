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
from tokenize_jobs.packing_result import FILLER_COUNTS, UnitResult
from tokenize_jobs.packing_unit import check_budget

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
        manifest: what is known before the units ran: fingerprint, vocabulary, config, names of the sources.
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
    by_source = _sum_by_source(result.tokens_by_source for result in results)
    return {
        "sequence_length": sequence_length,
        "fill": fill(num_tokens, manifest.num_rows, sequence_length),
        "cut": sum(result.cut for result in results),
        "split": sum(result.split for result in results),
        # A source that gave nothing is one all the same: whoever asks what the rows were made of must look at it.
        "sources": {name: sum(by_source.get(name, {}).values()) for name in manifest.extra["sources"]},
        "tokens_by_source": by_source,
        "tokens_by_direction": _sum(result.tokens_by_direction for result in results),
        "documents_by_direction": _sum(result.documents_by_direction for result in results),
        "filler": _sum([dict.fromkeys(FILLER_COUNTS, 0), *(result.filler for result in results)]),
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
            for key in ("filtered", "rejected", "tokens", "tokens_by_direction", "documents_by_direction", "filler")
        },
        "tokens_by_source": _sum_by_source(part["tokens_by_source"] for part in parts),
        "fill": round(num_tokens / places, 6) if places else 0.0,
        "datasets": datasets,
    }
    _check_counts(report)
    return report


def _one(manifest: Manifest) -> dict[str, Any]:
    return {
        **manifest.counts,
        "rows": manifest.num_rows,
        "draws": manifest.config["draws"],
        "tokens": manifest.tokens,
        **{key: value for key, value in manifest.extra.items() if key != "sidecars"},
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
    """The report as tables for a terminal: datasets, then tokens by modality, source and direction."""
    lines = [
        f"{'dataset':<28}{'documents':>12}{'draws':>7}{'rows':>11}{'fill':>9}{'filler':>9}{'rejected':>10}{'filtered':>10}"
    ]
    for name, part in [*report["datasets"].items(), ("all", report)]:
        rejected, filtered = sum(part["rejected"].values()), sum(part["filtered"].values())
        lines.append(
            f"{name:<28}{part['written']:>12,}{part.get('draws', ''):>7}{part['rows']:>11,}{part['fill']:>9.2%}"
            f"{_share(part['filler']['tokens'], part['tokens']):>9}{rejected:>10,}{filtered:>10,}"
        )
    sources = {name: sum(counts.values()) for name, counts in report["tokens_by_source"].items()}
    for title, counts in (
        ("modality", report["tokens"]),
        ("source", sources),
        ("direction", report["tokens_by_direction"]),
    ):
        lines.append(f"{'tokens by ' + title:<28}{_in_words(counts)}")
    filler = report["filler"]
    if filler["documents"]:
        lines.append(f"{'filler':<28}{filler['documents']:,} documents, {filler['repeated']:,} of them told before")
    lines.append(f"cut {report['cut']}, split {report['split']:,}; {report['seconds']:.1f} s")
    return "\n".join(lines)


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,} ({_share(count, counts)})" for name, count in sorted(counts.items()))


def _share(count: int, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return f"{count / total if total else 0:.1%}"


def _sum_by_source(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    found = list(parts)
    names = sorted({name for part in found for name in part})
    return {name: _sum(part.get(name, {}) for part in found) for name in names}


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
