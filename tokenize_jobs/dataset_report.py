"""What a person reads about a tokenized corpus: ``datacard.md`` and ``report.html`` in its folder.

Counts come from the report (sums over the ledger), identities from the manifest, times from the report's own ``times``;
code usage and lengths from a sample of the shards (:mod:`tokenize_jobs.dataset_statistics`). The page holds everything
it shows and asks no network for anything. The card has no times; the page has, like ``report.json``:
:data:`TIMED_NAMES` are the files of a dataset whose bytes may differ between two runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.codec_page import fill_page, html_table, usage_chart
from pipeline.codec_report import LevelUsage
from shards.errors import DatasetError
from shards.manifest import Manifest, read_manifest
from shards.modality import SOUNDS, Modality
from shards.writer import commit_bytes
from tokenize_jobs.data_card import data_card, describe_sample, filters_in_force, stated_licences
from tokenize_jobs.dataset_charts import distribution_chart, duration, outcome_bar, progress_chart, short
from tokenize_jobs.dataset_statistics import DatasetStatistics, read_statistics
from tokenize_jobs.log import log_path
from tokenize_jobs.report import REPORT_NAME, read_report
from tokenize_jobs.timing import Times, read_times

CARD_NAME = "datacard.md"
PAGE_NAME = "report.html"
TIMED_NAMES = (REPORT_NAME, PAGE_NAME)
_WIDTH, _WIDTH_ALONE = 260, 660


def write_dataset_page(
    output: Path, manifest: Manifest, report: Mapping[str, Any], *, times: Times | None = None
) -> DatasetStatistics:
    """Commit ``datacard.md`` and ``report.html``.

    Args:
        manifest: of the dataset, which may not be written yet.
        report: as :func:`tokenize_jobs.report.write_report` returned it.
        times: for the curve of tokens over time; none without.

    Returns:
        What the sample of shards said.

    Raises:
        DatasetError: a shard is missing or damaged.
    """
    statistics = read_statistics(output, manifest.shards)
    commit_bytes(output / CARD_NAME, data_card(manifest, report, statistics).encode())
    commit_bytes(output / PAGE_NAME, dataset_page(manifest, report, statistics, times=times).encode())
    return statistics


def refresh_dataset_page(output: Path) -> bool:
    """Write card and page of a finished dataset that lacks one of them: an old one, or one that samples were removed from.

    Returns:
        Whether they were written.

    Raises:
        DatasetError: the dataset is not finished, or a shard is missing or damaged.
    """
    if (output / CARD_NAME).is_file() and (output / PAGE_NAME).is_file():
        return False
    manifest, report = read_manifest(output), read_report(output)
    if report is None:
        raise DatasetError(f"{output / REPORT_NAME}: expected a report, found none; run anygpt-tokenize again")
    write_dataset_page(output, manifest, report, times=read_times(log_path(output)))
    return True


def dataset_page(
    manifest: Manifest, report: Mapping[str, Any], statistics: DatasetStatistics, *, times: Times | None = None
) -> str:
    """The whole page; equal arguments give equal text."""
    css = Path(__file__).with_name("dataset_page.css").read_text(encoding="utf-8")
    body = [
        f'<p class="quiet">Tokenized corpus · fingerprint <code>{escape(manifest.fingerprint)}</code></p>',
        _facts(_headline(manifest, report)),
        _section("What became of the inputs", _outcome(report)),
        _section("Tokens", _tokens(manifest, report)),
        _section("Time and price", _times(report, times)),
        *_usage_sections(statistics),
        _section("Lengths", _lengths(statistics)),
        _section("Licences and filters", _rules(manifest, statistics)),
        _section("Resolved config", _config(manifest)),
    ]
    return fill_page(manifest.name, body, css=css)


def _headline(manifest: Manifest, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "samples", f"{report['written']:,}"
    yield "tokens", short(sum(report["tokens"].values()))
    if report["images"]:
        yield "pictures", f"{report['images']:,}"
    for sound in SOUNDS:
        if hours := report["hours"].get(sound):
            yield f"hours of {sound}", f"{hours:,.2f}" if hours >= 0.1 else f"{hours:,.4f}"
    yield "shards", f"{len(manifest.shards):,}"
    yield "on disk", _bytes(sum(shard.num_bytes for shard in manifest.shards))


def _outcome(report: Mapping[str, Any]) -> str:
    parts = {
        "kept": report["written"],
        "filtered": sum(report["filtered"].values()),
        "rejected": sum(report["rejected"].values()),
    }
    inputs = max(1, report["inputs"])
    legend = "".join(
        f'<li><span class="swatch {name}"></span>{name} {count:,} ({count / inputs:.2%})</li>'
        for name, count in parts.items()
    )
    rows = [
        (kind, reason, f"{count:,}", f"{count / inputs:.3%}")
        for kind in ("filtered", "rejected")
        for reason, count in sorted(report[kind].items(), key=lambda item: (-item[1], item[0]))
    ]
    reasons = (
        html_table(("", "reason", "inputs", "share"), rows, text_columns=2)
        if rows
        else '<p class="quiet">Nothing was filtered or rejected.</p>'
    )
    words = f"{report['inputs']:,} inputs in {report['units']:,} units; every one of them is counted once."
    return f'<p>{words}</p>{outcome_bar(parts)}<ul class="legend">{legend}</ul>{reasons}'


def _tokens(manifest: Manifest, report: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for name in sorted({*manifest.tokenizers, *report["tokens"]}):
        rate = Modality(name).rate
        amount = f"{report['hours'].get(name, 0.0):,.3f} h" if rate.is_sound else f"{report['images']:,} pictures"
        per = f"{rate.frame_rate_hz * rate.levels_read:g} a second" if rate.is_sound else f"{rate.num_frames} a picture"
        read = f"{rate.levels_read} of {rate.levels_at_rest}"
        digest = manifest.tokenizers.get(name, "")
        rows.append((name, digest, f"{report['tokens'].get(name, 0):,}", amount, per, read))
    head = ("modality", "codec fingerprint", "tokens", "from", "rate", "levels read of those stored")
    return html_table(head, rows, text_columns=2)


def _times(report: Mapping[str, Any], times: Times | None) -> str:
    known = report.get("times")
    if not known:
        return '<p class="quiet">No log lies beside the dataset, so nothing is known about times.</p>'
    tokens = sum(report["tokens"].values())
    busy_of = "GPU busy" if known["gpu_hours"] else "encoders busy"
    facts = [
        ("wall time", duration(known["wall_s"])),
        ("throughput", f"{short(tokens / known['wall_s'])} tokens/s" if known["wall_s"] else "–"),
        ("samples", f"{short(report['inputs'] / known['wall_s'])}/s" if known["wall_s"] else "–"),
        (busy_of, f"{known['busy_share']:.1%}" if known["wait_s"] else "–"),
        ("GPU hours", f"{known['gpu_hours']:,.4g}"),
        ("CPU core hours", f"{known['cpu_hours']:,.4g}"),
    ]
    if (hours := known["device_hours_per_billion_tokens"]) is not None:
        facts.append(("device hours per billion tokens", f"{hours:,.4g}"))
    if (price := known.get("usd_per_billion_tokens")) is not None:
        facts.append(("price of a billion tokens", f"{price:,.2f} USD"))
        rate = f"{known['usd_per_hour']:,.2f} USD for an hour of a device."
    else:
        rate = "No hourly rate was given; multiply device hours by yours."
    rows = [
        (
            name,
            f"{one['units']:,}",
            duration(one["encode_s"]),
            _waited(one),
            f"{one['busy_share']:.1%}" if one["wait_s"] else "–",
        )
        for name, one in known["devices"].items()
    ]
    table = html_table(("device", "units", "encoding", "waiting", "busy"), rows, text_columns=1) if rows else ""
    chart = ""
    if times is not None and len(times.curve) > 1:
        chart = (
            f'<h3>Tokens over time</h3><div class="levels alone plain"><div>{progress_chart(times.curve)}</div></div>'
        )
    note = (
        f"Runs: {known['runs']:,}; workers: {known['workers'] or 'unknown'}. Wall time is from the start of the command to "
        f"this corpus's last unit, other corpora of the same command included. {rate}"
    )
    return f'{_facts(facts)}{table}{chart}<p class="quiet">{escape(note)}</p>'


def _waited(device: Mapping[str, Any]) -> str:
    # A log of before there was the field has no waiting, and a device that never waited there is none.
    return duration(device["wait_s"]) if device["wait_s"] else "–"


def _usage_sections(statistics: DatasetStatistics) -> Iterator[str]:
    for modality, levels in statistics.usage.items():
        alone, width = (" alone", _WIDTH_ALONE) if len(levels) == 1 else ("", _WIDTH)
        charts = "".join(
            f"<div><b>level {one.level}</b> <span class='quiet'>{one.entropy_bits:.2f} bits</span>"
            f"{usage_chart(one, width=width)}</div>"
            for one in levels
        )
        body = (
            f"{_usage_table(levels)}<h3>Codes by frequency</h3>"
            f'<div class="levels{alone}">{charts}</div>'
            '<p class="quiet">Up: how often a code occurs. Across: its place, the most frequent first. Both on log scales. '
            f"Dashed: all codes equally often. From {describe_sample(statistics)}.</p>"
        )
        yield f'<section class="m-{escape(modality)}"><h2>Code usage: {escape(modality)}</h2>{body}</section>'


def _usage_table(levels: Sequence[LevelUsage]) -> str:
    rows = [
        (
            str(one.level),
            f"{one.num_observed:,}",
            f"{one.num_used:,} of {one.codebook_size:,}",
            f"{one.entropy_bits:.2f} bits",
            f"{one.ceiling_bits:.2f} bits",
            f"{one.perplexity:,.1f}",
            f"{one.most_common_share:.2%}",
        )
        for one in levels
    ]
    head = ("level", "codes looked at", "used", "entropy", "at most", "perplexity", "most common")
    return html_table(head, rows, text_columns=1)


def _lengths(statistics: DatasetStatistics) -> str:
    charts = "".join(
        f"<div><b>{escape(one.name)}</b> <span class='quiet'>{one.num_observed:,} values, {escape(one.unit)}: "
        f"median {one.median:,.4g}, mean {one.mean:,.4g}, longest {one.longest:,.4g}</span>{distribution_chart(one)}</div>"
        for one in statistics.lengths
        if one.shortest < one.longest  # of equal lengths there is nothing to draw; the card has them
    )
    note = f"From {describe_sample(statistics)}. Dashed: the median. The last bar holds the longest hundredth, however long."
    return f'<div class="levels plain pairs">{charts}</div><p class="quiet">{escape(note)}</p>'


def _rules(manifest: Manifest, statistics: DatasetStatistics) -> str:
    licences = [
        (name or "not stated", f"{rows:,}" if rows else "by the config")
        for name, rows in stated_licences(manifest, statistics).items()
    ]
    config = manifest.config.get("config", {})
    filters = [(name, json.dumps(value, ensure_ascii=False)) for name, value in filters_in_force(config).items()]
    rules = (
        html_table(("rule in force", "value"), filters, text_columns=1) if filters else "<p>No threshold was set.</p>"
    )
    return f"{html_table(('licence', 'rows looked at'), licences, text_columns=1)}{rules}"


def _config(manifest: Manifest) -> str:
    text = json.dumps(manifest.config, indent=1, sort_keys=True, ensure_ascii=False)
    return f"<details><summary>as stored in manifest.json</summary><pre>{escape(text)}</pre></details>"


def _section(title: str, body: str) -> str:
    return f'<section class="plain"><h2>{escape(title)}</h2>{body}</section>'


def _facts(facts: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cells}</dl>'


def _bytes(count: int) -> str:
    return f"{short(count)}B" if count >= 1000 else f"{count} B"
