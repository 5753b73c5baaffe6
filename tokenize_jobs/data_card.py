"""The data card of a tokenized corpus, ``datacard.md``: what it is, how it was made, what is not in it.

The form is that of dataset cards on the Hugging Face hub (a YAML header, then sections), so that the folder can be
uploaded as it is. Nothing in it depends on when or where the job ran: equal datasets have equal cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.filters.config import FilterConfig
from shards.manifest import Manifest
from shards.modality import SOUNDS, Modality
from tokenize_jobs.dataset_statistics import DatasetStatistics

_TASKS = {
    Modality.IMAGE: ("image-to-text", "text-to-image"),
    Modality.SPEECH: ("automatic-speech-recognition", "text-to-speech"),
    Modality.MUSIC: ("text-to-audio",),
    Modality.AUDIO: ("text-to-audio",),
}
_SIZES = ((1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M"))
_LARGE_SIZES = ((100_000_000, "100M"), (1_000_000_000, "1B"))
# Licences the hub has an identifier for, among those that corpora of these kinds come with.
_KNOWN_LICENCES = re.compile(
    r"^(cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]|apache-2\.0|mit|odc-by|odbl|pddl|cdla-permissive-[12]\.0|openrail)$"
)


def data_card(manifest: Manifest, report: Mapping[str, Any], statistics: DatasetStatistics) -> str:
    """The whole card, as Markdown; equal arguments give equal text."""
    lines = [
        *_header(manifest, report, statistics),
        "",
        f"# {manifest.name}: discrete tokens",
        "",
        *_what(manifest, report),
        *_how(manifest),
        *_counts(report, statistics),
        *_filters(manifest),
        *_licence(manifest, statistics),
        *_gaps(manifest, report, statistics),
    ]
    return "\n".join(lines).rstrip() + "\n"


def licence_id(licence: str) -> str:
    """The hub's identifier of a licence as corpora write it, ``cc-by-4.0`` for ``CC BY 4.0``; ``other`` without one."""
    if not licence.strip():
        return "unknown"
    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    name = {"cc0": "cc0-1.0", "public-domain": "cc0-1.0"}.get(name, name)
    return name if _KNOWN_LICENCES.match(name) else "other"


def filters_in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every threshold of a resolved config that is set, by its key path."""
    found: dict[str, Any] = {}
    for key in sorted(config):
        if key == "filters":
            # A rule's parameters have values while the rule is off; what is as it always is, is no rule in force.
            usual = FilterConfig().model_dump(mode="json")
            found |= {name: value for name, value in _leaves(config[key], "") if value != usual.get(name)}
        elif re.search("leave|dedup|decontam|exclu", key):
            found |= dict(_leaves(config[key], key))
    return found


def stated_licences(manifest: Manifest, statistics: DatasetStatistics) -> dict[str, int]:
    """Licence -> rows looked at that state it; the config's where nothing was looked at."""
    config = _config(manifest)
    return dict(statistics.licences) or {str(config.get("licence", "")): 0}


def _header(manifest: Manifest, report: Mapping[str, Any], statistics: DatasetStatistics) -> Iterator[str]:
    licences = sorted({licence_id(name) for name in stated_licences(manifest, statistics)})
    other = [name for name in stated_licences(manifest, statistics) if licence_id(name) == "other"]
    tasks = sorted({task for modality in report["tokens"] for task in _TASKS.get(Modality(modality), ())})
    if len(report["tokens"]) > 1:
        tasks.append("any-to-any")
    yield "---"
    yield f"pretty_name: {json.dumps(f'{manifest.name}: discrete tokens', ensure_ascii=False)}"
    yield from _yaml_list("license", licences)
    if other:
        yield f"license_name: {json.dumps('; '.join(other), ensure_ascii=False)}"
    yield from _yaml_list("task_categories", tasks)
    yield from _yaml_list("size_categories", [_size(report["written"])])
    yield from _yaml_list("tags", ["anygpt", "discrete-tokens", *sorted(report["tokens"])])
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files: shards/*.parquet"
    yield "---"


def _what(manifest: Manifest, report: Mapping[str, Any]) -> Iterator[str]:
    media = ", ".join(_amounts(report)) or "no media"
    yield (
        f"{report['written']:,} samples of the corpus **{manifest.name}** ({media}), with every medium as the codes of a "
        "tokenizer and every text as text. Rows are Parquet; any reader of Parquet opens them."
    )
    yield ""
    yield f"Fingerprint of everything that decides the bytes: `{manifest.fingerprint}`. Checksums: `manifest.json`."
    yield ""


def _how(manifest: Manifest) -> Iterator[str]:
    config = _config(manifest)
    yield from ("## How it was made", "")
    yield (
        f"`anygpt-tokenize` read split `{config.get('split', '')}` of corpus `{config.get('corpus', manifest.name)}` in "
        f"units of at most {config.get('unit_items', 0):,} inputs, format version {manifest.format_version}."
    )
    yield ""
    yield from ("| modality | codec fingerprint | levels × codes | codes |", "|---|---|---|---|")
    for name, digest in sorted(manifest.tokenizers.items()):
        rate = Modality(name).rate
        codes = f"{rate.frame_rate_hz:g} frames a second" if rate.is_sound else f"{rate.num_frames} a picture"
        yield f"| {name} | `{digest}` | {rate.levels_at_rest} × {rate.codebook_size:,} | {codes} |"
    yield ""


def _counts(report: Mapping[str, Any], statistics: DatasetStatistics) -> Iterator[str]:
    yield from ("## Counts", "", "| | count |", "|---|---:|")
    rows: list[tuple[str, Any]] = [("inputs", report["inputs"]), ("kept", report["written"])]
    rows += [(f"filtered: {reason}", count) for reason, count in report["filtered"].items()]
    rows += [(f"rejected: {reason}", count) for reason, count in report["rejected"].items()]
    rows += [("pictures", report["images"])] if report["images"] else []
    rows += [(f"{name} tokens", count) for name, count in report["tokens"].items()]
    yield from (f"| {_cell(name)} | {count:,} |" for name, count in rows)
    yield from (f"| hours of {name} | {hours:,.3f} |" for name, hours in report["hours"].items() if hours)
    yield ""
    if not statistics.usage:
        return
    yield f"Code usage and lengths, over {describe_sample(statistics)}:"
    yield ""
    yield from ("| modality | level | codes used | entropy | at most |", "|---|---:|---:|---:|---:|")
    for modality, levels in statistics.usage.items():
        for one in levels:
            used = f"{one.num_used:,} of {one.codebook_size:,}"
            yield f"| {modality} | {one.level} | {used} | {one.entropy_bits:.2f} bit | {one.ceiling_bits:.2f} bit |"
    yield ""
    yield from ("| length | shortest | median | mean | longest |", "|---|---:|---:|---:|---:|")
    for one in statistics.lengths:
        figures = " | ".join(f"{value:,.4g}" for value in (one.shortest, one.median, one.mean, one.longest))
        yield f"| {_cell(one.name)}, {one.unit} | {figures} |"
    yield ""


def describe_sample(statistics: DatasetStatistics) -> str:
    """What statistics were made from, in words."""
    if statistics.is_whole:
        return f"all {statistics.num_shards:,} shards ({statistics.rows:,} rows)"
    return (
        f"{statistics.shards_read:,} of {statistics.num_shards:,} shards, spread evenly over the dataset "
        f"({statistics.rows:,} rows)"
    )


def _filters(manifest: Manifest) -> Iterator[str]:
    yield from ("## Filters", "")
    rules = filters_in_force(_config(manifest))
    if not rules:
        yield from (
            "No threshold was set; what is counted as filtered, the corpus's own published rules leave out.",
            "",
        )
        return
    yield from ("| rule | value |", "|---|---|")
    yield from (f"| `{name}` | `{_cell(json.dumps(value, ensure_ascii=False))}` |" for name, value in rules.items())
    yield ""


def _licence(manifest: Manifest, statistics: DatasetStatistics) -> Iterator[str]:
    yield from ("## Licence", "")
    for name, rows in stated_licences(manifest, statistics).items():
        yield f"* {name or 'not stated by the corpus'}" + (
            f": {rows:,} of the {statistics.rows:,} rows looked at" if rows else ""
        )
    yield ""
    yield "Codes are derived from the media: the corpus's terms hold for them too. Each row names its source and licence."
    yield ""


def _gaps(manifest: Manifest, report: Mapping[str, Any], statistics: DatasetStatistics) -> Iterator[str]:
    yield from ("## Known gaps", "")
    rejected, filtered = sum(report["rejected"].values()), sum(report["filtered"].values())
    inputs = max(1, report["inputs"])
    yield f"* {rejected:,} inputs ({rejected / inputs:.2%}) could not be read; `rejects.parquet` names each with its reason."
    yield f"* {filtered:,} inputs ({filtered / inputs:.2%}) were left out by rule; `filtered.parquet` names each."
    if (limit := _config(manifest).get("limit")) is not None:
        yield f"* Only the first {limit:,} inputs of the corpus were read."
    if any(not name for name in stated_licences(manifest, statistics)):
        yield "* Rows without a licence: the corpus states none, and neither did the config (key `licence`)."
    yield "* Media are not here. Codes lose detail, and what they decode to depends on the codec named above."
    rules = filters_in_force(_config(manifest))
    if not any(re.search("leave|dedup|duplicate|decontam", name) for name in rules):
        yield "* No list of duplicates or of evaluation items was applied: both may be in it."


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in sorted(value.items()):
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value is not None and value is not False and value not in ("", []) and not path.endswith("keep_unknown"):
        yield path, value


def _config(manifest: Manifest) -> Mapping[str, Any]:
    config = manifest.config.get("config", {})
    return config if isinstance(config, dict) else {}


def _amounts(report: Mapping[str, Any]) -> Iterator[str]:
    if report["images"]:
        yield f"{report['images']:,} pictures"
    for sound in SOUNDS:
        if report["hours"].get(sound):
            yield f"{report['hours'][sound]:,.2f} hours of {sound}"


def _size(rows: int) -> str:
    below = "n"
    for stop, name in (*_SIZES, *_LARGE_SIZES):
        if rows < stop:
            return f"n<{name}" if below == "n" else f"{below}<n<{name}"
        below = name
    return "1B<n<10B" if rows < 10_000_000_000 else "10B<n<100B"


def _yaml_list(key: str, values: list[str]) -> Iterator[str]:
    if values:
        yield f"{key}:"
        yield from (f"- {value}" for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
