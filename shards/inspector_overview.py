"""The top of the inspector's page: a dataset in numbers, counted and charted."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from itertools import groupby

import numpy as np

from shards.histogram import draw_histogram, make_histogram, say_number
from shards.inspector_page import in_words, share_bar, table
from shards.manifest import Manifest
from shards.survey import Measured, Survey

MAX_CHARTS = 24
"""Of one title: a dataset may have any number of directions and quality numbers."""


def heading_html(manifest: Manifest) -> str:
    """Name, kind and fingerprint."""
    packed = manifest.kind == "packed"
    kind = "packed rows, ready to train on" if packed else "sample shards: codes and text, before any vocabulary"
    return (
        f"<h1>{html.escape(manifest.name)}</h1>"
        f'<p class="quiet">{kind} · fingerprint <code>{html.escape(manifest.fingerprint)}</code></p>'
    )


def facts_html(manifest: Manifest) -> str:
    """What the manifest says, in figures and tables."""
    # Summed over all shards, of which there may be tens of thousands: once.
    tokens = manifest.tokens
    tables = "".join(f"<div>{one}</div>" for one in _tables(manifest, tokens))
    return f"{_figures(manifest, tokens)}{_token_bars(manifest, tokens)}" + (
        f'<div class="columns">{tables}</div>' if tables else ""
    )


def survey_html(survey: Survey, noun: str, *, tokens_known: bool) -> str:
    """How much was looked at, and a chart for every number.

    Args:
        noun: ``rows`` or ``samples``.
        tokens_known: the manifest says how many tokens each dataset gave, so those counted here are not shown.
    """
    parts = [f'<p class="quiet">{_looked_at(survey, noun)}</p>']
    if survey.tokens and not tokens_known:
        parts.append(_by_dataset(survey.tokens, "Tokens by modality and dataset, of the rows looked at"))
    charts: list[str] = []
    for title, group in groupby(survey.measured, key=lambda measured: measured.title):
        of_title = list(group)
        charts += map(_chart, of_title[:MAX_CHARTS])
        if rest := of_title[MAX_CHARTS:]:
            names = ", ".join(in_words(measured.part) for measured in rest)
            parts.append(f'<p class="quiet">{html.escape(f"{title}, without a chart: {names}")}</p>')
    return "".join([*parts, f'<div class="charts">{"".join(charts)}</div>'])


def _looked_at(survey: Survey, noun: str) -> str:
    if survey.is_whole:
        return f"all {survey.total:,} {noun} were looked at"
    files = f"{survey.shards_looked_at:,} of {survey.shards:,} shards"
    return f"{survey.looked_at:,} of {survey.total:,} {noun} were looked at, in {files}, spread evenly"


def _chart(measured: Measured) -> str:
    histogram = make_histogram(measured.values, whole=measured.whole)
    part = in_words(measured.part)
    name = f"{measured.title}: {part}" if part else measured.title
    picture = draw_histogram(histogram, label=name, unit=measured.unit or part, things=measured.things)
    rows = [(histogram.name(number), count) for number, count in enumerate(histogram.counts)]
    numbers = table([measured.unit or part, measured.things], rows, name=f"numbers of the chart {name}")
    return (
        f'<figure class="chart"><h3>{html.escape(name)}</h3>{picture}<figcaption>{_summary(measured)}</figcaption>'
        f"<details><summary>numbers</summary>{numbers}</details></figure>"
    )


def _summary(measured: Measured) -> str:
    values = np.asarray(measured.values, np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        return "no numbers"
    facts = {"least": known.min(), "median": np.median(known), "mean": known.mean(), "most": known.max()}
    exact = {"least", "most"} if measured.whole else set[str]()
    unknown = f", {len(values) - len(known):,} are no number" if len(known) < len(values) else ""
    said = ", ".join(
        f"{name} {say_number(float(value if name in exact else f'{value:.4g}'))}" for name, value in facts.items()
    )
    return f"{len(values):,} {html.escape(measured.things)}: {said}{unknown}"


def _figures(manifest: Manifest, tokens: Mapping[str, int]) -> str:
    packed, extra = manifest.kind == "packed", manifest.extra
    facts = [("rows" if packed else "samples", f"{manifest.num_rows:,}"), ("shards", f"{len(manifest.shards):,}")]
    facts.append(("on disk", _size(sum(shard.num_bytes for shard in manifest.shards))))
    if tokens:
        facts.append(("tokens", f"{sum(tokens.values()):,}"))
    if packed:
        facts.append(("ids per row", f"{extra['sequence_length']:,}"))
    if "fill" in extra:
        facts.append(("fill", f"{extra['fill']:.2%}"))
    if "cut" in extra:
        facts.append(("documents cut", f"{extra['cut']:,}"))
    entries = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{entries}</dl>'


def _token_bars(manifest: Manifest, tokens: Mapping[str, int]) -> str:
    by_dataset: Mapping[str, Mapping[str, int]] = manifest.extra.get("tokens_by_source", {})
    bars = f"<h3>Tokens by modality</h3>{share_bar(tokens)}" if tokens else ""
    return bars + (_by_dataset(by_dataset, "Tokens by modality and dataset") if by_dataset else "")


def _by_dataset(tokens: Mapping[str, Mapping[str, int]], heading: str) -> str:
    """A bar for each dataset, to the scale of the largest, and the numbers below."""
    modalities = list(dict.fromkeys(modality for counts in tokens.values() for modality in counts))
    largest = max((sum(counts.values()) for counts in tokens.values()), default=0)
    bars = "".join(
        f"<dt>{html.escape(name or '(no sidecar)')}</dt><dd>{share_bar(counts, whole=largest)}</dd>"
        for name, counts in tokens.items()
    )
    rows = [
        [name or "(no sidecar)", *(counts.get(modality, 0) for modality in modalities), sum(counts.values())]
        for name, counts in tokens.items()
    ]
    numbers = table(["dataset", *modalities, "all"], rows, name=heading)
    return f'<h3>{html.escape(heading)}</h3><dl class="bars">{bars}</dl>{numbers}'


def _tables(manifest: Manifest, tokens: Mapping[str, int]) -> Iterator[str]:
    if tokens:
        yield table(["modality", "tokens"], list(tokens.items()))
    for name, unit in (("tokens_by_direction", "tokens"), ("documents_by_direction", "documents")):
        counts: Mapping[str, int] = manifest.extra.get(name, {})
        if counts:
            yield table(["direction", unit], [(in_words(direction), count) for direction, count in counts.items()])
    if manifest.counts:
        rows = [(name, int(manifest.counts.get(name, 0))) for name in ("inputs", "written")]
        for kind in ("filtered", "rejected"):
            reasons: Mapping[str, int] = manifest.counts.get(kind, {})
            rows += [(f"{kind}: {in_words(reason)}", count) for reason, count in reasons.items()]
        yield table(["documents" if manifest.kind == "packed" else "samples", "count"], rows)


def _size(num_bytes: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.0f} KB"
