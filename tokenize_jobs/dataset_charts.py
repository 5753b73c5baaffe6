"""Inline SVG of the dataset page: what became of the inputs, how lengths are distributed, how tokens came in.

Colours are classes of the page's style, so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tokenize_jobs.dataset_statistics import Distribution

_WIDTH, _HEIGHT, _LEFT, _FOOT = 320, 130, 40, 18
_WIDE = 660


def outcome_bar(parts: Mapping[str, int]) -> str:
    """One bar: kept, then filtered, then rejected.

    Args:
        parts: ``kept``, ``filtered`` and ``rejected``; a part of nothing is not drawn.
    """
    total = max(1, sum(parts.values()))
    marks: list[str] = []
    before = 0
    for name, count in parts.items():
        x, width = _WIDE * before / total, _WIDE * count / total
        if count:
            title = f"<title>{escape(name)}: {count:,} ({count / total:.2%})</title>"
            marks.append(
                f'<rect class="{name}" x="{x:.1f}" y="0" width="{max(width, 1):.1f}" height="24">{title}</rect>'
            )
        before += count
    label = ", ".join(f"{name} {count:,}" for name, count in parts.items())
    frame = f'class="outcome" viewBox="0 0 {_WIDE} 24" preserveAspectRatio="none"'
    return f'<svg {frame} role="img" aria-label="{label}">{"".join(marks)}</svg>'


def distribution_chart(lengths: Distribution) -> str:
    """Bars over equal bins, with the median as a dashed line."""
    top = max(1, *lengths.counts)
    low, high = lengths.edges[0], lengths.edges[-1]
    bottom, plot = _HEIGHT - _FOOT, _WIDTH - _LEFT - 4
    marks = [_grid(top, bottom, _WIDTH)]
    step = plot / len(lengths.counts)
    for number, count in enumerate(lengths.counts):
        height = (bottom - 8) * count / top
        title = (
            f"<title>{lengths.edges[number]:,.4g} to {lengths.edges[number + 1]:,.4g} {lengths.unit}: {count:,}</title>"
        )
        marks.append(
            f'<rect class="area" x="{_LEFT + number * step:.1f}" y="{bottom - height:.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{height:.1f}">{title}</rect>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x, value = _LEFT + plot * share, low + (high - low) * share
        marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{value:,.4g}</text>')
    x = _LEFT + plot * min(1.0, (lengths.median - low) / ((high - low) or 1.0))
    marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}" class="even"/>')
    label = f"{lengths.name}: {lengths.num_observed:,} values, median {lengths.median:,.4g} {lengths.unit}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'


def progress_chart(curve: Sequence[tuple[float, int]]) -> str:
    """Tokens over wall time, from the log.

    Args:
        curve: (seconds, tokens so far), two points at least.
    """
    last, top = max(curve[-1][0], 1e-9), max(1, curve[-1][1])
    bottom, plot = _HEIGHT - _FOOT, _WIDE - _LEFT - 14
    points = " ".join(
        f"{_LEFT + plot * seconds / last:.1f},{bottom - (bottom - 8) * tokens / top:.1f}" for seconds, tokens in curve
    )
    marks = [_grid(top, bottom, _WIDE), f'<polyline class="line" points="{_LEFT},{bottom} {points}"/>']
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        marks.append(
            f'<text x="{_LEFT + plot * share:.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{duration(last * share)}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDE} {_HEIGHT}" role="img" aria-label="tokens over time">{"".join(marks)}</svg>'


def short(value: float) -> str:
    """A number in at most four figures: 1,234 as 1.23 k, ten milliards as 10 G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g} {letter}" if abs(value) >= 100 * size else f"{value / size:.3g} {letter}"
    return f"{value:,.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for size, name in ((86400.0 * 2, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / (86400.0 if name == 'd' else size):,.1f} {name}"
    return f"{seconds:.3g} s"


def _grid(top: int, bottom: int, width: int) -> str:
    marks: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - 8) * share
        marks.append(f'<line x1="{_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        # Half of an odd small count is no count.
        if top > 99 or top * share == int(top * share):
            marks.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{short(top * share)}</text>')
    return "".join(marks)
