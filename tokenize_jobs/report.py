"""What a tokenization made: counts, tokens, hours, and the manifest that turns a folder into a dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.manifest import Manifest
from shards.modality import SOUNDS
from shards.records import FORMAT_VERSION
from shards.summary import Summary
from shards.writer import commit_bytes
from tokenize_jobs.timing import Times, times_report

REPORT_NAME = "report.json"


def make_manifest(
    name: str, summary: Summary, *, fingerprint: str, facts: Mapping[str, Any], tokenizers: Mapping[str, str]
) -> Manifest:
    """The passport of a tokenized corpus: its shards in unit order, and what did not get in."""
    return Manifest(
        kind="samples",
        name=name,
        fingerprint=fingerprint,
        shards=summary.shards,
        format_version=FORMAT_VERSION,
        tokenizers=dict(tokenizers),
        config=facts,
        counts=summary.counts,
        extra=summary.extra,
    )


def write_report(
    output: Path,
    sums: Mapping[str, Any],
    *,
    seconds: float,
    times: Times | None = None,
    gpus_per_encoder: float = 1.0,
    usd_per_hour: float | None = None,
) -> dict[str, Any]:
    """Commit ``report.json``: the sums, how long it took this run to make what was missing, and what all runs took.

    Args:
        sums: of a summary.
        seconds: of this run.
        times: of all runs, from the log; without it the report has no ``times``.
        gpus_per_encoder: share of a GPU that one encoding worker takes.
        usd_per_hour: of a device, for the price of a billion tokens.
    """
    num_tokens = sum(sums["tokens"].values())
    speed = round(num_tokens / seconds, 1) if seconds > 0 else 0.0
    report = {**sums, "seconds": round(seconds, 3), "tokens_per_s": speed}
    if times is not None and times.runs:
        report["times"] = times_report(
            times, tokens=num_tokens, gpus_per_encoder=gpus_per_encoder or 1.0, usd_per_hour=usd_per_hour
        )
    commit_bytes(output / REPORT_NAME, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report


def read_report(output: Path) -> dict[str, Any] | None:
    """The stored report, or None."""
    path = output / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def format_reports(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for a terminal: one line a corpus, then tokens by modality and what was left out, by reason."""
    hours = "".join(f"{f'{sound} h':>10}" for sound in SOUNDS)
    lines = [
        f"{'corpus':<20}{'inputs':>10}{'written':>10}{'filtered':>10}{'rejected':>10}"
        f"{'images':>9}{hours}{'tokens':>13}{'tokens/s':>11}"
    ]
    for name, report in reports.items():
        filtered, rejected = sum(report["filtered"].values()), sum(report["rejected"].values())
        # A report of an older run may not know every sound.
        hours = "".join(f"{report['hours'].get(sound, 0.0):>10.3f}" for sound in SOUNDS)
        lines.append(
            f"{name:<20}{report['inputs']:>10,}{report['written']:>10,}{filtered:>10,}{rejected:>10,}"
            f"{report['images']:>9,}{hours}"
            f"{sum(report['tokens'].values()):>13,}{report['tokens_per_s']:>11,.0f}"
        )
    for title in ("tokens", "filtered", "rejected"):
        total = _sum(report[title] for report in reports.values())
        if total:
            lines.append(f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in total.items()))
    return "\n".join(lines)


def _sum(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums by key, sorted by key; exact whatever the order because parts come in unit order."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
