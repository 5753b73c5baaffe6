"""Histograms: values to bins with round borders, and bins to a picture that needs no script and no other file.

Every value is in exactly one bin. Few different counts, or one value alone, get a bin each; values over several orders of
magnitude get borders at 1, 2, 5, 10, 20, ...; all others bins of one width.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BINS = 24
_LIMIT = 1e12
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 170, 46, 10, 22, 36


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bins and what is in them.

    Attributes:
        edges: (bins + 1,) ascending; bin k is ``[edges[k], edges[k + 1])``, the last one has its end too.
        counts: (bins,).
        unit_bins: each bin is one number, its lower border.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unit_bins: bool = False

    def name(self, number: int) -> str:
        """A bin in words: ``17``, or ``20 to 40``."""
        if self.unit_bins:
            return say_number(self.edges[number])
        return f"{say_number(self.edges[number])} to {say_number(self.edges[number + 1])}"


def make_histogram(values: npt.ArrayLike, *, whole: bool = False) -> Histogram:
    """Bins for values; those that are no finite number are left out, those beyond ±1e12 are counted at ±1e12.

    Args:
        whole: the values are whole numbers.
    """
    known = np.asarray(values, np.float64).reshape(-1)
    known = np.clip(known[np.isfinite(known)], -_LIMIT, _LIMIT)
    if not len(known):
        return Histogram((0.0, 1.0), (0,))
    low, high = float(known.min()), float(known.max())
    unit_bins = low == high or (whole and high - low < MAX_BINS)
    if unit_bins:
        edges = low + np.arange(high - low + 2)
    elif low >= 0 and high > 1e-6 and high > 50 * max(float(np.median(known)), _smallest(known)):
        edges = _round_edges(known)
    else:
        edges = _even_edges(low, high, whole=whole)
    number = np.minimum(np.searchsorted(edges, known, side="right") - 1, len(edges) - 2)
    counts = np.bincount(number, minlength=len(edges) - 1)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), unit_bins)


def draw_histogram(histogram: Histogram, *, label: str, unit: str, things: str) -> str:
    """An SVG picture with both axes named; what it shows is said in words for those who do not see it."""
    counts = histogram.counts
    top, width = max(1, *counts), (_WIDTH - _LEFT - _RIGHT) / len(counts)
    floor, height = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP
    bars = "".join(
        f'<rect x="{_LEFT + number * width + 0.5:.1f}" y="{floor - count / top * height:.1f}" '
        f'width="{max(width - 1, 0.5):.1f}" height="{count / top * height:.1f}">'
        f"<title>{histogram.name(number)}: {count:,} {things}</title></rect>"
        for number, count in enumerate(counts)
        if count
    )
    scale = "" if histogram.unit_bins or _is_even(histogram) else " (steps of 1, 2, 5, 10, …)"
    text = html.escape(f"{label}: {_in_words(histogram, unit, things)}", quote=True)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text}">'
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_TOP}" y2="{_TOP}"/>'
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{_short(top)}</text>'
        f'<text x="{_LEFT - 6}" y="{floor + 4}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_TOP - 9}">{html.escape(things)}</text>'
        f'{bars}{_ticks(histogram, width, floor)}<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 5}" '
        f'text-anchor="middle">{html.escape((unit or label) + scale)}</text></svg>'
    )


def say_number(value: float) -> str:
    """A number for a person: ``1,500``, ``0.25``, ``2e-06``."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 else f"{value:.3g}"


def _is_even(histogram: Histogram) -> bool:
    widths = np.diff(histogram.edges)
    return bool(np.allclose(widths, widths[0]))


def _ticks(histogram: Histogram, width: float, floor: float) -> str:
    """Five numbers below the axis at most, fewer where they would touch."""
    values = histogram.edges[:-1] if histogram.unit_bins else histogram.edges
    shift = 0.5 if histogram.unit_bins else 0.0
    every = max(1, -(-(len(values) - 1) // 5))
    return "".join(
        f'<text x="{_LEFT + (number + shift) * width:.1f}" y="{floor + 14:.0f}" '
        f'text-anchor="middle">{_short(values[number])}</text>'
        for number in range(0, len(values), every)
    )


def _in_words(histogram: Histogram, unit: str, things: str) -> str:
    total = sum(histogram.counts)
    if not total:
        return f"no {things}"
    most = int(np.argmax(histogram.counts))
    suffix = f" {unit}" if unit else ""
    return (
        f"{total:,} {things} from {say_number(histogram.edges[0])} to {say_number(histogram.edges[-1])}{suffix}, "
        f"most of them ({histogram.counts[most]:,}) at {histogram.name(most)}{suffix}"
    )


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return say_number(value)


def _smallest(known: npt.NDArray[np.float64]) -> float:
    above = known[known > 0]
    return float(above.min()) if len(above) else 0.0


def _round_edges(known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0, and 1, 2, 5, 10, ... over the seven orders of magnitude up to the highest value."""
    last = int(np.floor(np.log10(known.max()))) + 1
    first = max(int(np.floor(np.log10(_smallest(known)))), last - 7)
    edges = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    above = next(number for number, edge in enumerate(edges) if edge > known.max())
    return np.array([0.0, *edges[: above + 1]] if known.min() < edges[0] else edges[: above + 1])


def _even_edges(low: float, high: float, *, whole: bool) -> npt.NDArray[np.float64]:
    span: Any = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** np.floor(np.log10(span / (MAX_BINS - 2)))
    step = next(digit * power for digit in (1, 2, 5, 10, 20) if span <= digit * power * (MAX_BINS - 2))
    step = max(step, 1.0) if whole else step
    first, last = np.floor(low / step), np.ceil(high / step)
    edges = np.arange(first, max(last, first + 1) + 1) * step
    # Rounding may have put a border on the wrong side of the outermost value.
    edges = np.append(edges[0] - step, edges) if edges[0] > low else edges
    return np.append(edges, edges[-1] + step) if edges[-1] < high else edges
