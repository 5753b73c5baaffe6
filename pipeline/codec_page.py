"""The codec report as one HTML page: originals beside what comes back, code usage by level, figures.

The page holds everything it shows and asks no network for anything. It wears the inspector's colours, light and dark.
Equal reports give equal text; timings are the only figures that differ between two runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import cast

import numpy as np
import numpy.typing as npt

import shards.inspector
from pipeline.codec_report import CodecReport, LevelUsage, Shown
from pipeline.tokenizers.base import Medium, Picture, Wave
from pipeline.tokenizers.spectra import FrontEnd
from shards.media_files import data_uri, png_bytes, wav_bytes
from shards.vocabulary import Modality

_WIDTH, _WIDTH_ALONE, _HEIGHT, _LEFT, _FOOT = 260, 660, 120, 34, 16
_MEL_BANDS = 80
_MEL_TOP = 140  # half decibels above the floor
# Dark to bright, evenly spaced; a spectrogram reads the same on a light and on a dark page.
_COLOURS = np.array([[4, 4, 16], [60, 15, 100], [150, 40, 110], [230, 90, 60], [252, 180, 70], [252, 250, 200]])
_NAMES = {
    "image_psnr_db": ("PSNR", "dB", "decoded against true pictures; more is better"),
    "mel": ("log-mel distance", "dB", "decoded against true sound; less is better"),
    "mel_shuffled": ("shuffled control", "dB", "against another item's sound: what chance gives"),
    "mel_level1": ("level 1 alone", "dB", "as the language model writes it"),
}


def write_codec_page(title: str, reports: Sequence[CodecReport]) -> str:
    """The whole page; equal arguments give equal text."""
    return fill_page(title, [_overview(reports), *map(_section, reports)])


def fill_page(title: str, body: Sequence[str], *, css: str = "") -> str:
    """A whole page in the inspector's colours around pieces of HTML, with what more a kind of page needs of style."""
    styles = _css(Path(shards.inspector.__file__).with_name("inspector.css")) + _css(_beside("codec_page.css")) + css
    template = Template(_beside("codec_page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), css=styles, body="\n".join(body))


def usage_chart(level: LevelUsage, *, width: int = _WIDTH) -> str:
    """An inline SVG: every code's count, the most frequent first, both on a log scale.

    A dashed line says where all counts would be if the codes were equally frequent.
    """
    top = max(1.0, math.log10(max(level.counts, default=1)))
    marks: list[str] = []
    for power in range(int(top) + 1):
        y = _y(power, top)
        marks.append(f'<line x1="{_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        marks.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{10**power:,}</text>')
    even = level.num_observed / level.codebook_size
    if even >= 1:
        y = _y(math.log10(even), top)
        marks.append(f'<line x1="{_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="even"/>')
    for rank in [10**power for power in range(1 + int(math.log10(level.codebook_size)))]:
        x = _x(rank - 1, level, width)
        marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - 4}">{rank:,}</text>')
    label = f"level {level.level}: {level.num_used:,} of {level.codebook_size:,} codes used"
    area = f'<path class="area" d="{_area(level, top, width)}"/>'
    return f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{label}">{area}{"".join(marks)}</svg>'


def spectrogram(wave: Wave, sample_rate_hz: int) -> npt.NDArray[np.uint8]:
    """(80, frames, 3) uint8: a log-mel picture, low tones at the bottom, 100 frames a second."""
    front_end = FrontEnd(sample_rate_hz, round(0.01 * sample_rate_hz), round(0.032 * sample_rate_hz), _MEL_BANDS)
    loud = np.clip(front_end.log_mel(wave) / _MEL_TOP, 0, 1).T[::-1]
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(loud, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _beside(name: str) -> Path:
    return Path(__file__).with_name(name)


def _css(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _y(power: float, top: float) -> float:
    """Where a count of 10**power lies; above the bottom, so that a code that occurs once is still seen."""
    return (_HEIGHT - _FOOT - 10) * (1 - power / top) + 4


def _x(codes_before: int, level: LevelUsage, width: int) -> float:
    """The left edge of the bar of the code that so many are more frequent than."""
    return _LEFT + (width - _LEFT) * math.log(codes_before + 1) / math.log(level.codebook_size + 1)


def _area(level: LevelUsage, top: float, width: int) -> str:
    """Steps, one for every run of equal counts: a codebook of 8,192 takes a few hundred characters."""
    bottom, rank = _HEIGHT - _FOOT, 0
    parts = [f"M{_LEFT} {bottom}"]
    for count, run in groupby(level.counts):
        y = _y(math.log10(count), top)
        parts.append(f"L{_x(rank, level, width):.1f} {y:.1f}")
        rank += len(list(run))
        parts.append(f"L{_x(rank, level, width):.1f} {y:.1f}")
    return " ".join([*parts, f"L{_x(rank, level, width):.1f} {bottom}Z"])


def _overview(reports: Sequence[CodecReport]) -> str:
    rows = [
        (
            str(one.modality),
            one.codec.name,
            one.codec.fingerprint,
            f"{one.codec.levels} × {one.codec.codebook_size:,}",
            _amount(one),
            f"{one.bits_per_unit:,.0f} bit{_per(one)}",
            f"{one.used_bits_per_unit:,.0f} bit{_per(one)}",
        )
        for one in reports
    ]
    head = ("modality", "codec", "fingerprint", "levels × codes", "measured on", "room", "used (entropy)")
    return html_table(head, rows, text_columns=3)


def _section(report: CodecReport) -> str:
    colour = report.modality if report.modality in ("image", "speech", "music", "audio") else "other"
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(report))
    alone, width = (" alone", _WIDTH_ALONE) if len(report.levels) == 1 else ("", _WIDTH)
    charts = "".join(
        f"<div><b>level {level.level}</b> <span class='quiet'>{level.num_used:,} of {level.codebook_size:,} codes, "
        f"{level.entropy_bits:.2f} bits</span>{usage_chart(level, width=width)}</div>"
        for level in report.levels
    )
    kind = "pictures" if report.modality is Modality.IMAGE else "sounds"
    items = "".join(_item(shown, report) for shown in report.shown)
    body = [
        f"<h2>{report.modality}</h2>",
        f'<p class="quiet">{escape(_described(report))}</p>',
        f'<dl class="facts">{facts}</dl>',
        *_back_note(report),
        _quality_table(report),
        f'<h3>Code usage by level</h3>{_levels_table(report)}<p class="quiet">{_caveat(report)}</p>',
        f'<h3>Codes by frequency</h3><div class="levels{alone}">{charts}</div>',
        '<p class="quiet">Up: how often a code occurs. Across: its place, the most frequent first. Both on log scales. '
        "Dashed: all codes equally often, where that is once or more.</p>",
        f'<h3>{_heading(report)}</h3><div class="items {kind}">{items}</div>',
    ]
    return f'<section class="m-{colour}">{"".join(body)}</section>'


def _heading(report: CodecReport) -> str:
    beside = "Original and decoded" if report.back.detokenizer else "Originals and their codes"
    return f"{beside}: {len(report.shown)} of {report.num_items:,} items, spread evenly"


def _described(report: CodecReport) -> str:
    codec, measured = report.codec, report.measured_on
    rates = f" · {codec.sample_rate_hz:,} Hz · {codec.frame_rate_hz:g} frames/s" if codec.sample_rate_hz else ""
    damaged = f" · {measured.num_undecodable:,} more could not be decoded" if measured.num_undecodable else ""
    return f"{codec.name} · {codec.fingerprint}{rates} · from {', '.join(measured.corpora) or 'media given'}{damaged}"


def _facts(report: CodecReport) -> Iterator[tuple[str, str]]:
    per, speed = _per(report), "×\N{NO-BREAK SPACE}real time" if report.media_s else " pictures/s"
    yield "items", f"{report.num_items:,}"
    if report.media_s:
        yield "sound", f"{report.media_s:,.1f} s"
    yield "codes", f"{report.codes_per_unit:,.0f}{per}"
    yield "room", f"{report.bits_per_unit:,.0f} bit{per}"
    yield "used (entropy)", f"{report.used_bits_per_unit:,.0f} bit{per}"
    yield "encode", f"{_short(report.speed(report.encode_s))}{speed}"
    if report.decode_s is not None:
        yield "decode", f"{_short(report.speed(report.decode_s))}{speed}"


def _back_note(report: CodecReport) -> Iterator[str]:
    if report.back.detokenizer is None:
        yield (
            f'<p class="note">No way back is configured ({escape(report.back.missing)}): codes and figures only. '
            "Put the files there, or name them in the codec's config.</p>"
        )
    elif report.back.generative:
        yield (
            '<p class="note">The way back makes a new medium of the same meaning. A difference to the original, '
            "PSNR say, would measure nothing, and none is given: compare by eye.</p>"
        )


def _quality_table(report: CodecReport) -> str:
    if not report.quality:
        return ""
    rows: list[tuple[str, ...]] = []
    for name, value in report.quality:
        label, unit, meaning = _NAMES[name if name in _NAMES else name.removeprefix(f"{report.modality}_")]
        rows.append((label, meaning, f"{value:.2f} {unit}"))
    return f"<h3>Quality</h3>{html_table(('figure', 'what it compares', 'value'), rows, text_columns=2)}"


def _levels_table(report: CodecReport) -> str:
    head = ("level", "observed", "used", "share", "dead", "entropy", "ceiling", "perplexity", "most common")
    rows = [
        (
            str(level.level),
            f"{level.num_observed:,}",
            f"{level.num_used:,} of {level.codebook_size:,}",
            f"{level.num_used / level.codebook_size:.1%}",
            f"{level.num_dead:,}",
            f"{level.entropy_bits:.2f} bits",
            f"{level.ceiling_bits:.2f} bits",
            f"{level.perplexity:,.1f}",
            f"{level.most_common_share:.1%}",
        )
        for level in report.levels
    ]
    return html_table(head, rows, text_columns=1)


def _caveat(report: CodecReport) -> str:
    observed = report.levels[0].num_observed
    words = (
        f"{observed:,} codes were observed at each level. The entropy of n observations cannot exceed log2 n, so the "
        "ceiling is log2 of the smaller of n and the codebook."
    )
    if observed < 10 * report.codec.codebook_size:
        words += " With so few for so large a codebook, entropy and used codes are underestimates; give more --items."
    return words


def _item(shown: Shown, report: CodecReport) -> str:
    ways = [("original", shown.original), *shown.decoded]
    figures = "".join(
        f"<figure>{_medium(medium, report, name)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, medium in ways
    )
    first = " ".join(str(code) for code in shown.codes[:16, 0].tolist())
    frames, levels = shown.codes.shape
    codes = f"{frames:,} × {levels} codes; level 1: {first} …"
    return f'<article class="item"><div class="ways">{figures}</div><code>{codes}</code></article>'


def _medium(medium: Medium, report: CodecReport, name: str) -> str:
    label = escape(f"{report.modality}, {name}")
    if medium.ndim == 3:
        return f'<img src="{data_uri(png_bytes(cast(Picture, medium)), "image/png")}" alt="{label}" loading="lazy">'
    wave, rate = cast(Wave, medium), report.codec.sample_rate_hz
    picture = data_uri(png_bytes(spectrogram(wave, rate)), "image/png")
    sound = data_uri(wav_bytes(wave, rate), "audio/wav")
    return (
        f'<img src="{picture}" alt="spectrogram: {label}" loading="lazy">'
        f'<audio controls preload="none" src="{sound}" aria-label="{label}"></audio>'
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A table whose first columns are words and whose others are numbers."""
    kinds = ["" if place < text_columns else ' class="number"' for place in range(len(head))]
    header = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _amount(report: CodecReport) -> str:
    return f"{report.num_items:,} items" + (f", {report.media_s:,.1f} s" if report.media_s else "")


def _per(report: CodecReport) -> str:
    return "/s" if report.media_s else "/picture"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
