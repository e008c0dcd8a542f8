"""The report's two kinds of charts as inline SVG, drawn by hand: small, sharp at every size, and nothing to download.

Colours are CSS classes, which the page's style sheet fills in for light and dark screens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from odm_deploy.grid import Grid

WIDTH = 360
"""Of every chart in user units, which are pixels on a phone held upright; wider screens show several side by side."""

_BINS = 72
_TALL = 90
_MOST_LEVELS = 16
"""Grids of more levels than that are drawn as a range: their levels would be a solid block."""
_ROW = 16
_LABEL = 150
_LABEL_CHARACTERS = 24

_SVG_FILE = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="10.5"'
_STYLE = (
    "<style>svg{background:#fff}text{fill:#555}.label{fill:#111}.bar,.kept{fill:#4477aa}.clipped{fill:#cc3311}"
    ".range{fill:#e8eef5}.level{stroke:#bbb}</style>"
)


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: float
    """Finite, at least 0."""
    text: str
    """The value as people read it."""


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars from zero, one a row from the top, the longest as wide as there is room; `title` is spoken."""
    height = _ROW * len(bars)
    longest = max(bar.value for bar in bars) or 1.0
    room = WIDTH - _LABEL - 62
    rows: list[str] = []
    for index, bar in enumerate(bars):
        top, width = index * _ROW, room * bar.value / longest
        # The end of a long layer name: beginnings are alike.
        label = bar.label if len(bar.label) <= _LABEL_CHARACTERS else "…" + bar.label[1 - _LABEL_CHARACTERS :]
        rows.append(
            f'<text class="label" x="{_LABEL - 6}" y="{top + 12}" text-anchor="end">{escape(label)}'
            f"<title>{escape(bar.label)}</title></text>"
            f'<rect class="bar" x="{_LABEL}" y="{top + 3}" width="{width:.1f}" height="{_ROW - 6}"/>'
            f'<text x="{_LABEL + width + 4:.1f}" y="{top + 12}">{escape(bar.text)}</text>'
        )
    return _svg(height, title, "".join(rows))


def standalone(chart: str) -> str:
    """A chart as a file of its own, with the colours that a page's style sheet would give it."""
    head, _, rest = chart.partition(">")
    return f"{head.replace('<svg', _SVG_FILE, 1)}>{_STYLE}{rest}\n"


def distribution_chart(values: NDArray[np.floating], counts: NDArray[np.floating], grid: Grid, title: str) -> str:
    """A histogram of activations with the levels of the grid that they are rounded to.

    Bar heights are square roots of shares, so that tails remain visible beside the peak. What lies beyond the first
    and the last level, and is therefore clipped, has a class of its own.

    Args:
        values: float [K], centres of the histogram's bins, ascending; at least one.
        counts: float [K], how many values fell into each.
        grid: the layer's grid.
        title: what the chart shows, for screen readers, as in `bar_chart`.
    """
    least, most = min(float(values[0]), grid.lower), max(float(values[-1]), grid.upper)
    margin = (most - least or 1.0) * 0.02
    low, high = least - margin, most + margin

    def x(value: float) -> float:
        return WIDTH * (value - low) / (high - low)

    shares, edges = np.histogram(values, bins=_BINS, range=(low, high), weights=counts)
    heights = np.sqrt(shares / max(shares.max(), 1.0)) * (_TALL - 4)
    parts: list[str] = [
        f'<rect class="range" x="{x(grid.lower):.1f}" y="0" width="{x(grid.upper) - x(grid.lower):.1f}" '
        f'height="{_TALL}"/>'
    ]
    # One path a class instead of one element a bin: a network has dozens of these charts.
    inside = (edges[:-1] + edges[1:]) / 2
    clipped = (inside < grid.lower - grid.scale / 2) | (inside > grid.upper + grid.scale / 2)
    step = WIDTH / _BINS
    for name, chosen in (("kept", ~clipped), ("clipped", clipped)):
        path = "".join(
            f"M{index * step:.1f} {_TALL}v{-heights[index]:.1f}h{step:.1f}v{heights[index]:.1f}z"
            for index in np.flatnonzero(chosen & (shares > 0))
        )
        parts.append(f'<path class="{name}" d="{path}"/>')
    if grid.code_max < _MOST_LEVELS:
        levels = "".join(f"M{x(grid.lower + code * grid.scale):.1f} 0V{_TALL}" for code in range(grid.code_max + 1))
        parts.append(f'<path class="level" d="{levels}"/>')
    parts.append(
        f'<text x="2" y="{_TALL + 13}">{least:.3g}</text>'
        f'<text x="{WIDTH - 2}" y="{_TALL + 13}" text-anchor="end">{most:.3g}</text>'
    )
    zero = x(0.0)
    if 60 < zero < WIDTH - 60:
        parts.append(f'<text x="{zero:.1f}" y="{_TALL + 13}" text-anchor="middle">0</text>')
    return _svg(_TALL + 18, title, "".join(parts))


def share_text(value: float) -> str:
    """A share as a percentage of three significant digits; infinities and NaN have none."""
    return f"{100 * value:.3g}%" if math.isfinite(value) else "-"


def _svg(height: int, title: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )
