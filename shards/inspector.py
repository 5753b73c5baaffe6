"""A dataset as one HTML page: what a person should see before a cluster trains on it.

The page holds everything it shows and asks no network for anything. Text decoder and detokenizers are handed in, so the
lowest floor imports no codec; without them text is shown as ids and media as their first codes.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shards.errors import AnyGPTError
from shards.inspection import ShownDocument, ShownRow, Stretch, shown_rows, shown_samples
from shards.manifest import Manifest, read_manifest
from shards.media_files import data_uri, png_bytes, wav_bytes
from shards.reader import open_packed
from shards.records import Segment, TokenizedSample
from shards.vocabulary import Codes, Modality, Vocabulary

DecodeText = Callable[[Sequence[int]], str]
ROWS_OPEN = 2


class Detokenizer(Protocol):
    """The part of a media detokenizer that the inspector uses."""

    sample_rate_hz: int

    def decode(self, batch: Sequence[Codes]) -> Sequence[Any]:
        """One picture (height, width, 3) uint8 or wave (samples,) float per item."""
        ...


@dataclass(slots=True)
class Decoders:
    """What turns ids back into something to read, see and hear.

    Attributes:
        text: ids of the text block to text; None shows the ids.
        media: by modality.
        max_media: decode so many of each modality; a sound is some 200 KB of page.
    """

    text: DecodeText | None = None
    media: Mapping[str, Detokenizer] = field(default_factory=dict[str, Detokenizer])
    max_media: int = 40
    _used: dict[str, int] = field(default_factory=dict[str, int])

    def show(self, modality: str, codes: Codes, label: str) -> str:
        """HTML of one medium: a picture, a player, or its first codes."""
        detokenizer = self.media.get(modality)
        self._used[modality] = self._used.get(modality, 0) + 1
        if detokenizer is None or self._used[modality] > self.max_media:
            return f"<code>{' '.join(str(code) for code in codes.reshape(-1)[:8].tolist())} …</code>"
        medium = np.asarray(detokenizer.decode([codes])[0])
        if medium.ndim == 3:
            return f'<img src="{data_uri(png_bytes(medium), "image/png")}" alt="{html.escape(label)}" loading="lazy">'
        source = data_uri(wav_bytes(medium, detokenizer.sample_rate_hz), "audio/wav")
        return f'<audio controls preload="none" src="{source}" aria-label="{html.escape(label)}"></audio>'


def inspect_dataset(folder: Path, decoders: Decoders, *, rows: int = 20) -> str:
    """The page of a packed dataset or of sample shards.

    Args:
        rows: how many rows or samples to show, spread evenly over the dataset.

    Raises:
        DatasetError: if the folder holds no dataset, or a damaged one.
    """
    manifest = read_manifest(folder)
    if manifest.kind == "packed":
        dataset = open_packed(folder)
        shown = [
            _row(row, dataset.vocabulary, decoders, opened=n < ROWS_OPEN)
            for n, row in enumerate(shown_rows(dataset, rows))
        ]
        heading = f"{len(shown)} of {manifest.num_rows:,} rows, spread evenly"
    else:
        shown = [_sample(sample, decoders) for sample in shown_samples(folder, manifest, rows)]
        heading = f"{len(shown)} of {manifest.num_rows:,} samples, spread evenly"
    body = [*_summary(manifest), f"<h2>{heading}</h2>", _legend(manifest), *shown]
    return _page(manifest.name, "\n".join(body))


def _page(title: str, body: str) -> str:
    css = Path(__file__).with_name("inspector.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _summary(manifest: Manifest) -> Iterator[str]:
    packed = manifest.kind == "packed"
    kind = "packed rows, ready to train on" if packed else "sample shards: codes and text, before any vocabulary"
    yield f"<h1>{html.escape(manifest.name)}</h1>"
    yield f'<p class="quiet">{kind} · fingerprint <code>{html.escape(manifest.fingerprint)}</code></p>'
    facts = [("rows" if packed else "samples", f"{manifest.num_rows:,}"), ("shards", f"{len(manifest.shards):,}")]
    facts.append(("on disk", _size(sum(shard.num_bytes for shard in manifest.shards))))
    if manifest.tokens:
        facts.append(("tokens", f"{sum(manifest.tokens.values()):,}"))
    if packed:
        facts.append(("ids per row", f"{manifest.extra['sequence_length']:,}"))
    if "fill" in manifest.extra:
        facts.append(("fill", f"{manifest.extra['fill']:.2%}"))
    if "cut" in manifest.extra:
        facts.append(("documents cut", f"{manifest.extra['cut']:,}"))
    yield (
        '<dl class="facts">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts) + "</dl>"
    )
    yield from _tables(manifest)


def _tables(manifest: Manifest) -> Iterator[str]:
    tokens = manifest.tokens
    tables: list[str] = []
    if tokens:
        yield _overview_bar(tokens)
        tables.append(_table("modality", "tokens", tokens))
    directions: Mapping[str, int] = manifest.extra.get("tokens_by_direction", {})
    if directions:
        tables.append(_table("direction", "tokens", directions))
    counts = manifest.counts
    if counts:
        flat = {"inputs": counts.get("inputs", 0), "written": counts.get("written", 0)}
        for kind in ("filtered", "rejected"):
            flat |= {f"{kind}: {reason}": count for reason, count in counts.get(kind, {}).items()}
        tables.append(_table("documents" if manifest.kind == "packed" else "samples", "count", flat))
    if tables:
        yield f'<div class="columns">{"".join(f"<div>{table}</div>" for table in tables)}</div>'


def _table(name: str, number: str, values: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(key.replace("_", " "))}</td><td class="number">{value:,}</td></tr>'
        for key, value in values.items()
    )
    head = f'<tr><th scope="col">{name}</th><th scope="col" class="number">{number}</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _overview_bar(tokens: Mapping[str, int]) -> str:
    total = sum(tokens.values())
    parts: list[str] = []
    left = 0.0
    for modality, count in tokens.items():
        width = 100 * count / total
        parts.append(
            f'<i class="{_colour(modality)}" style="left:{left:.3f}%;width:{width:.3f}%" title="{modality} {count:,}"></i>'
        )
        left += width
    label = ", ".join(f"{modality} {count / total:.0%}" for modality, count in tokens.items())
    return f'<h2>Tokens by modality</h2><div class="bar" role="img" aria-label="{label}">{"".join(parts)}</div>'


def _legend(manifest: Manifest) -> str:
    names = [str(modality) for modality in Modality]
    entries = [f'<li><span class="swatch {name}"></span>{name}</li>' for name in names]
    if manifest.kind == "packed":
        entries.append('<li><span class="swatch padding"></span>padding</li>')
        entries.append("<li>gap in the bar: document border</li><li>line below the bar: trained on</li>")
        entries.append('<li class="flow"><span class="masked">dotted: read, not trained on</span></li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _row(row: ShownRow, vocabulary: Vocabulary, decoders: Decoders, *, opened: bool) -> str:
    documents = "".join(_document(document, vocabulary, decoders) for document in row.documents)
    counts: dict[str, int] = {}
    for document in row.documents:
        for stretch in document.stretches:
            counts[stretch.modality] = counts.get(stretch.modality, 0) + len(stretch)
    made_of = ", ".join(f"{modality} {count:,}" for modality, count in counts.items())
    noun = "document" if len(row.documents) == 1 else "documents"
    filled = f"{row.num_tokens:,} of {row.sequence_length:,} ids ({row.num_tokens / row.sequence_length:.1%})"
    facts = f"{filled} · {len(row.documents)} {noun}"
    return (
        f'<details class="row"{" open" if opened else ""}><summary><h3>Row {row.number:,}</h3> '
        f'<span class="quiet">{html.escape(row.place)} · {facts}</span>{_bar(row, made_of)}</summary>{documents}</details>'
    )


def _bar(row: ShownRow, made_of: str) -> str:
    """Stretches, borders and padding to scale, and below them what is trained on."""
    scale = 100 / row.sequence_length
    parts: list[str] = []
    flags = np.concatenate([stretch.trained for document in row.documents for stretch in document.stretches])
    trained = [
        f'<i style="left:{begin * scale:.3f}%;width:{(end - begin) * scale:.3f}%"></i>'
        for begin, end in _equal_runs(flags)
        if flags[begin]
    ]
    for number, document in enumerate(row.documents):
        for stretch in document.stretches:
            place = f"left:{stretch.start * scale:.3f}%;width:{len(stretch) * scale:.3f}%"
            parts.append(
                f'<i class="{_colour(stretch.modality)}" style="{place}" title="{stretch.modality}, {len(stretch)} ids"></i>'
            )
        if number and document.stretches:
            parts.append(f'<b style="left:{document.stretches[0].start * scale:.3f}%"></b>')
    return (
        f'<div class="bar padding" role="img" aria-label="{html.escape(made_of)}">{"".join(parts)}</div>'
        f'<div class="loss" aria-hidden="true">{"".join(trained)}</div>'
    )


def _document(document: ShownDocument, vocabulary: Vocabulary, decoders: Decoders) -> str:
    flow = "".join(_stretch(stretch, document.title, vocabulary, decoders) for stretch in document.stretches)
    direction = (
        f'<span class="chip">{html.escape(document.direction.replace("_", " "))}</span>' if document.direction else ""
    )
    draw = f"<span>draw {document.draw}</span>" if document.draw else ""
    return (
        f'<article class="document"><header><span class="mono">{html.escape(document.title)}</span>{direction}{draw}'
        f'<span>{len(document):,} ids</span></header><div class="flow">{flow}</div></article>'
    )


def _stretch(stretch: Stretch, title: str, vocabulary: Vocabulary, decoders: Decoders) -> str:
    if stretch.modality == Modality.TEXT:
        return "".join(_say(stretch, vocabulary, decoders))
    block = vocabulary.block(stretch.modality)
    masked = "" if stretch.trained.any() else " masked"
    try:
        codes = block.to_codes(stretch.token_ids[1:-1])
        shown = decoders.show(stretch.modality, codes, f"{stretch.modality} of {title}")
        caption = (
            f"{stretch.modality} · {len(codes):,} frames"
            if stretch.modality != Modality.IMAGE
            else f"image · {len(codes)} codes"
        )
    except AnyGPTError as error:
        shown, caption = "", f'<span class="fault">{html.escape(str(error))}</span>'
    return f'<figure class="m-{_colour(stretch.modality)}{masked}">{shown}<figcaption>{caption}</figcaption></figure>'


def _say(stretch: Stretch, vocabulary: Vocabulary, decoders: Decoders) -> Iterator[str]:
    """Text to read: markers as chips, ids that are not trained on dimmed."""
    special = {vocabulary.bos_id: "<s>", vocabulary.eos_id: "</s>", vocabulary.pad_id: "<pad>"}
    special |= {token_id: marker for marker, token_id in vocabulary.markers.items()}
    ids = stretch.token_ids.tolist()
    is_special = np.array([token_id in special for token_id in ids])
    for begin, end in _equal_runs(is_special.astype(np.int8) * 2 + stretch.trained):
        if is_special[begin]:
            yield "".join(f'<span class="chip">{html.escape(special[token_id])}</span>' for token_id in ids[begin:end])
            continue
        said = (
            decoders.text(ids[begin:end]) if decoders.text else " ".join(str(token_id) for token_id in ids[begin:end])
        )
        yield f'<span class="{"say" if stretch.trained[begin] else "masked"}">{html.escape(said)}</span>'


def _sample(sample: TokenizedSample, decoders: Decoders) -> str:
    segments = "".join(_segment(segment, sample.sample_id, decoders) for segment in sample.segments)
    where = sample.provenance
    source = " · ".join(part for part in (where.source_file, where.member, where.licence) if part)
    return (
        f'<article class="row"><h3 class="mono">{html.escape(sample.sample_id)}</h3> '
        f'<span class="quiet">{html.escape(sample.corpus)} / {html.escape(sample.split)} · {html.escape(source)}</span>'
        f'<div class="flow">{segments}</div></article>'
    )


def _segment(segment: Segment, title: str, decoders: Decoders) -> str:
    if segment.codes is None:
        said = f'<span class="say">{html.escape(segment.text or "")}</span>'
        return f'<p><span class="chip">{html.escape(segment.slot)}</span> {said}</p>'
    shown = decoders.show(segment.modality, segment.codes, f"{segment.slot} of {title}")
    length = f"{segment.duration_s:.2f} s · " if segment.duration_s is not None else ""
    frames, levels = segment.codes.shape
    caption = f"{html.escape(segment.slot)} · {length}{frames:,} × {levels} codes"
    return f'<figure class="m-{_colour(segment.modality)}">{shown}<figcaption>{caption}</figcaption></figure>'


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e3:,.0f} KB" if num_bytes < 1e6 else f"{num_bytes / 1e6:,.1f} MB"


def _colour(modality: str) -> str:
    known = {"text", "image", "speech", "music", "audio"}
    return str(modality) if modality in known else "other"


def _equal_runs(values: Any) -> Iterator[tuple[int, int]]:
    """Half-open runs of equal values."""
    bounds = [0, *(np.flatnonzero(np.diff(np.asarray(values, np.int8))) + 1).tolist(), len(values)]
    return ((begin, end) for begin, end in itertools.pairwise(bounds) if begin < end)
