"""The report page: one self-contained HTML file that opens without network.

Corpora and tokens, how full the rows are, loss by modality, and the held-out generations next to the truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, TypeVar, cast

import numpy as np

from evaluation.heldout import Bubble, Conversation, Generation, TaskResult
from pipeline.tokenizers.base import MediaDetokenizer, Picture
from shards.media_files import data_uri, png_bytes, wav_bytes
from shards.vocabulary import Codes, Modality

MODALITY_COLOURS = {"all": "#8b949e", "text": "#4c78a8", "image": "#e45756", "speech": "#54a24b", "music": "#b279a2"}
_Shown = TypeVar("_Shown", Generation, Conversation)
_WIDTH, _HEIGHT, _MARGIN = 900, 300, 42
_MAX_SHOWN = 12
_MAX_POINTS = 400


def write_page(
    title: str,
    report: Mapping[str, Any],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    results: Sequence[TaskResult],
    detokenizers: Mapping[Modality, MediaDetokenizer],
) -> str:
    """The whole page as a string; equal arguments give equal text."""
    sections = [
        _tiles(report),
        _section("Corpora", _corpora_table(report["corpora"])),
        _section("Loss by modality", loss_chart(curves) + _loss_note(report)),
        _section("Codecs on held-out media", _figures_table(report["codec"])),
        *[_section(result.title, _task(result, detokenizers)) for result in results],
        _section("Stages", _stages_table(report)),
    ]
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(sections))


def loss_chart(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Loss over steps as an inline SVG, one line per modality."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return "<p>no steps were logged</p>"
    last = max(step for step, _ in points)
    top = max(loss for _, loss in points) * 1.05
    lines = [_axis(last, top)]
    for number, (name, curve) in enumerate(curves.items()):
        colour = MODALITY_COLOURS.get(name, "#999")
        path = " ".join(f"{_x(step, last):.1f},{_y(loss, top):.1f}" for step, loss in _smooth(curve))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(
            f'<text x="{_WIDTH - 110}" y="{20 + 18 * number}" fill="{colour}" class="key">{escape(name)}</text>'
        )
    label = "loss by modality over steps"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(lines)}</svg>'


def _smooth(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over equal stretches, at most ``_MAX_POINTS`` of them: single steps are noisy."""
    size = max(1, len(curve) // min(_MAX_POINTS, 120))
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[len(part) // 2][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _axis(last: int, top: float) -> str:
    marks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = _y(top * share, top), _x(round(last * share), last)
        marks.append(f'<line x1="{_MARGIN}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        marks.append(f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{top * share:.1f}</text>')
        marks.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 12}" class="tick" text-anchor="middle">{round(last * share)}</text>'
        )
    return "".join(marks)


def _x(step: int, last: int) -> float:
    return _MARGIN + (_WIDTH - _MARGIN - 10) * step / max(last, 1)


def _y(loss: float, top: float) -> float:
    return 10 + (_HEIGHT - 42) * (1 - loss / top)


def _tiles(report: Mapping[str, Any]) -> str:
    heldout = report["heldout"]
    tiles = [
        ("tokens trained on", f"{report['tokens_trained']:,}"),
        ("rows are full to", f"{report['pack_fill']:.1%}"),
        ("run", f"{sum(report['seconds'].values()) / 60:.1f} min"),
        ("peak memory", f"{report['peak_rss_gib']:.1f} GiB"),
    ]
    tiles += [(name.replace("_", " "), f"{value:.0%}") for name, value in heldout.items() if _headline(name)]
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in tiles)
        + "</div>"
    )


def _headline(name: str) -> bool:
    return name.endswith("_words") or name in (
        "dialogue_modality",
        "dialogue_content",
        "dialogue_alone_modality",
        "dialogue_alone_content",
        "text_to_image_colour",
        "text_to_image_shape",
        "text_to_music_instrument",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _corpora_table(corpora: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, *(f"{one[key]:,}" for key in ("inputs", "written", "filtered", "rejected")), _tokens(one["tokens"]))
        for name, one in corpora.items()
    ]
    return _table(("corpus", "inputs", "written", "filtered", "rejected", "codes"), rows)


def _tokens(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{modality} {count:,}" for modality, count in sorted(tokens.items()))


def _figures_table(figures: Mapping[str, float]) -> str:
    return _table(("figure", "value"), [(name.replace("_", " "), f"{value:.2f}") for name, value in figures.items()])


def _stages_table(report: Mapping[str, Any]) -> str:
    return _table(("stage", "seconds"), [(name, f"{seconds:,.1f}") for name, seconds in report["seconds"].items()])


def _loss_note(report: Mapping[str, Any]) -> str:
    rows = [(name, f"{one['first']:.3f}", f"{one['last']:.3f}") for name, one in report["loss"].items()]
    return _table(("modality", "first", "last"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


def _task(result: TaskResult, detokenizers: Mapping[Modality, MediaDetokenizer]) -> str:
    if result.conversations:
        return _figures_list(result) + _conversations(result.conversations, detokenizers)
    figures = " · ".join(f"{escape(_short(name, result))} <b>{value:.0%}</b>" for name, value in result.figures.items())
    cards = "".join(_card(one, detokenizers) for one in _spread(result.generations))
    return f"<p class='figures'>{len(result.generations)} held-out items: {figures}</p><div class='cards'>{cards}</div>"


def _figures_list(result: TaskResult) -> str:
    rows = [(_short(name, result).replace("_", " "), f"{value:.1%}") for name, value in result.figures.items()]
    return _table(("figure", "right"), rows)


def _conversations(held: Sequence[Conversation], detokenizers: Mapping[Modality, MediaDetokenizer]) -> str:
    """Whole dialogues, the model's own answers as its history, the true answer beside each."""
    shown = _spread(held)
    chats = "".join(
        f"<div class='chat'>{''.join(_bubble(one, detokenizers) for one in conversation.bubbles)}</div>"
        for conversation in shown
    )
    note = f"{len(shown)} of {len(held)} held-out dialogues, chosen by a hash; the model remembers its own answers."
    return f"<p class='figures'>{note}</p><div class='chats'>{chats}</div>"


def _bubble(one: Bubble, detokenizers: Mapping[Modality, MediaDetokenizer]) -> str:
    media = "".join(_medium(modality, codes, detokenizers) for modality, codes in one.media)
    words = f"<p>{escape(one.text)}</p>" if one.text else ""
    marks = f"<p class='marks'>{_marks(one.right)}</p>" if one.right else ""
    who = {"user": "user", "answer": "model", "truth": "true answer"}.get(one.who, one.who)
    return f"<div class='bubble {escape(one.who)}'><i>{escape(who)}</i>{words}<div class='media'>{media}</div>{marks}</div>"


def _marks(right: Mapping[str, bool]) -> str:
    return "".join(
        f"<span class='{'right' if is_right else 'wrong'}'>{'✓' if is_right else '✗'} {escape(name)}</span>"
        for name, is_right in right.items()
    )


def _short(name: str, result: TaskResult) -> str:
    return name.removeprefix(result.name).strip("_") or name


def _spread(generations: Sequence[_Shown]) -> list[_Shown]:
    """At most a dozen, chosen by a hash of their ids: no picking, and no stride that could fall in step with the data."""
    by_hash = sorted(generations, key=lambda one: hashlib.blake2b(one.sample_id.encode(), digest_size=8).digest())
    return by_hash[:_MAX_SHOWN]


def _card(one: Generation, detokenizers: Mapping[Modality, MediaDetokenizer]) -> str:
    media = "".join(
        f"<figure>{_medium(modality, codes, detokenizers)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, (modality, codes) in one.media.items()
    )
    texts = "".join(f"<p><i>{escape(name)}</i> {escape(text)}</p>" for name, text in one.texts.items())
    return f"<article><div class='media'>{media}</div>{texts}<p class='marks'>{_marks(one.right)}</p></article>"


def _medium(modality: Modality, codes: Codes, detokenizers: Mapping[Modality, MediaDetokenizer]) -> str:
    detokenizer = detokenizers[modality]
    if modality == Modality.IMAGE:
        picture = cast(Picture, detokenizer.decode([codes])[0])
        uri = data_uri(png_bytes(np.ascontiguousarray(picture[::2, ::2])), "image/png")
        return f"<img src='{uri}' alt='' width='104' height='104'>"
    # What the language model wrote and reads, of speech level 1; the truth is heard the same way.
    codes = codes[:, : modality.rate.levels_read]
    if not len(codes):
        return "<em>nothing</em>"
    uri = data_uri(wav_bytes(detokenizer.decode([codes])[0], detokenizer.sample_rate_hz), "audio/wav")
    return f"<audio controls preload='none' src='{uri}'></audio>"
