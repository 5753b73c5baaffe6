"""Packed rows on a page: a bar to scale, and every document as it reads, looks and sounds."""

from __future__ import annotations

import html
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from shards.errors import AnyGPTError
from shards.inspection import ShownDocument, ShownRow, Stretch
from shards.inspector_media import Decoders
from shards.inspector_page import chip, colour, data_attributes, in_words
from shards.modality import Modality
from shards.vocabulary import Vocabulary


def row_html(
    row: ShownRow, vocabulary: Vocabulary, decoders: Decoders, *, opened: bool, wanted: Collection[int] | None = None
) -> str:
    """One row, folded or open.

    Args:
        wanted: where documents start that are asked for: they are marked, of the others only the titles are shown.
    """
    documents = "".join(
        document_html(document, vocabulary, decoders, marked=wanted is not None)
        if wanted is None or document.start in wanted
        else _title_only(document)
        for document in row.documents
    )
    noun = "document" if len(row.documents) == 1 else "documents"
    filled = f"{row.num_tokens:,} of {row.sequence_length:,} ids ({row.num_tokens / row.sequence_length:.1%})"
    facts = f"{filled} · {len(row.documents)} {noun}"
    return (
        f'<details class="row" id="row-{row.number}"{" open" if opened else ""}><summary><h3>Row {row.number:,}</h3> '
        f'<span class="quiet">{html.escape(row.place)} · {facts}</span>{_bar(row, wanted or ())}</summary>'
        f"{documents}</details>"
    )


def document_html(document: ShownDocument, vocabulary: Vocabulary, decoders: Decoders, *, marked: bool = False) -> str:
    """One document with its text, pictures and players."""
    flow = "".join(_stretch(stretch, document.title, vocabulary, decoders) for stretch in document.stretches)
    kind = "document wanted" if marked else "document"
    return f'<article class="{kind}"{_data(document)}>{_header(document)}<div class="flow">{flow}</div></article>'


def legend() -> str:
    """What colours and lines of a row mean."""
    entries = [f'<li><span class="swatch {colour(name)}"></span>{name}</li>' for name in map(str, Modality)]
    entries.append('<li><span class="swatch padding"></span>padding</li>')
    entries.append("<li>gap in the bar: document border</li><li>line below the bar: trained on</li>")
    entries.append('<li class="flow"><span class="masked">dotted: read, not trained on</span></li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _title_only(document: ShownDocument) -> str:
    return f'<article class="document"{_data(document)}>{_header(document)}</article>'


def _data(document: ShownDocument) -> str:
    return data_attributes(modality=document.modalities, direction=(document.direction,), dataset=(document.source,))


def _header(document: ShownDocument) -> str:
    direction = chip(in_words(document.direction)) if document.direction else ""
    draw = f"<span>draw {document.draw}</span>" if document.draw else ""
    source = f"<span>{html.escape(document.source)}</span>" if document.source else ""
    return (
        f'<header><span class="mono">{html.escape(document.title)}</span>{direction}{draw}{source}'
        f"<span>{len(document):,} ids</span></header>"
    )


def _bar(row: ShownRow, wanted: Collection[int]) -> str:
    """Stretches, borders and padding to scale, and below them what is trained on."""
    scale = 100 / row.sequence_length
    stretches = [stretch for document in row.documents for stretch in document.stretches]
    flags = np.concatenate([stretch.trained for stretch in stretches])
    trained = [
        f'<i style="{_place(begin, end - begin, scale)}"></i>' for begin, end in equal_runs(flags) if flags[begin]
    ]
    parts = [
        f'<i class="{colour(stretch.modality)}" style="{_place(stretch.start, len(stretch), scale)}" '
        f'title="{html.escape(stretch.modality)}, {len(stretch)} ids"></i>'
        for stretch in stretches
    ]
    parts += [f'<b style="left:{document.start * scale:.3f}%"></b>' for document in row.documents[1:]]
    parts += [
        f'<u style="{_place(document.start, len(document), scale)}" title="{html.escape(document.title)}"></u>'
        for document in row.documents
        if document.start in wanted
    ]
    return (
        f'<div class="bar padding" role="img" aria-label="{html.escape(_made_of(stretches))}">{"".join(parts)}</div>'
        f'<div class="loss" aria-hidden="true">{"".join(trained)}</div>'
    )


def _place(start: int, length: int, scale: float) -> str:
    return f"left:{start * scale:.3f}%;width:{length * scale:.3f}%"


def _made_of(stretches: list[Stretch]) -> str:
    counts: dict[str, int] = {}
    for stretch in stretches:
        counts[stretch.modality] = counts.get(stretch.modality, 0) + len(stretch)
    return ", ".join(f"{modality} {count:,}" for modality, count in counts.items())


def _stretch(stretch: Stretch, title: str, vocabulary: Vocabulary, decoders: Decoders) -> str:
    if stretch.modality == Modality.TEXT:
        return "".join(_say(stretch, vocabulary, decoders))
    block = vocabulary.block(stretch.modality)
    masked = "" if stretch.trained.any() else " masked"
    try:
        codes = block.to_codes(stretch.token_ids[1:-1])
        shown = decoders.show(stretch.modality, codes, f"{stretch.modality} of {title}")
        size = f"{len(codes)} codes" if stretch.modality == Modality.IMAGE else f"{len(codes):,} frames"
        caption = html.escape(f"{stretch.modality} · {size}")
    except AnyGPTError as error:
        shown, caption = "", f'<span class="fault">{html.escape(str(error))}</span>'
    return f'<figure class="m-{colour(stretch.modality)}{masked}">{shown}<figcaption>{caption}</figcaption></figure>'


def _say(stretch: Stretch, vocabulary: Vocabulary, decoders: Decoders) -> Iterator[str]:
    """Text to read: markers as chips, ids that are not trained on dimmed."""
    special = {vocabulary.bos_id: "<s>", vocabulary.eos_id: "</s>", vocabulary.pad_id: "<pad>"}
    special |= {token_id: marker for marker, token_id in vocabulary.markers.items()}
    ids = stretch.token_ids.tolist()
    is_special = np.array([token_id in special for token_id in ids])
    for begin, end in equal_runs(is_special.astype(np.int8) * 2 + stretch.trained):
        if is_special[begin]:
            yield "".join(chip(special[token_id]) for token_id in ids[begin:end])
            continue
        said = decoders.text(ids[begin:end]) if decoders.text else " ".join(map(str, ids[begin:end]))
        yield f'<span class="{"say" if stretch.trained[begin] else "masked"}">{html.escape(said)}</span>'


def equal_runs(values: Any) -> Iterator[tuple[int, int]]:
    """Half-open runs of equal values."""
    bounds = [0, *(np.flatnonzero(np.diff(np.asarray(values, np.int8))) + 1).tolist(), len(values)]
    return ((begin, end) for begin, end in itertools.pairwise(bounds) if begin < end)
