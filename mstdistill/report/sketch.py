"""Curves in a few hundred microseconds, for a page that is renewed while a run goes on: matplotlib's take a hundred
times that, and a second to import."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

# Of the picture; room at its left and below for the numbers.
_WIDTH, _HEIGHT, _LEFT, _BELOW = 400, 190, 44, 20
# Points of a curve; more can't be told apart on a screen.
_POINTS = 200


def lines(title: str, series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """Curves over 0, 1, 2, ...: as `charts.lines` in less detail, with the least and the greatest number at the axes;
    SVG, and the names of the curves below it."""
    finite = [y for values in series.values() for y in values if math.isfinite(y)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    last = max(len(values) for values in series.values()) - 1
    foot, right = _HEIGHT - _BELOW, _WIDTH - 8

    def place(x: int, y: float) -> str:
        across = _LEFT + (right - _LEFT) * x / max(last, 1)
        return f"{across:.1f},{foot - (foot - 8) * (y - low) / ((high - low) or 1.0):.1f}"

    parts = [f'<path d="M{_LEFT} 8V{foot}H{right}" fill="none" stroke="var(--line)"/>']
    for number, values in enumerate(series.values()):
        step = max(1, len(values) // _POINTS)
        kept = [*range(0, len(values) - 1, step), len(values) - 1]
        points = " ".join(place(x, values[x]) for x in kept if math.isfinite(values[x]))
        colour = f"var(--s{number % 10})"
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    ends = [(_LEFT - 4, 14, "end", f"{high:.3g}"), (_LEFT - 4, foot, "end", f"{low:.3g}"),
            (_LEFT, foot + 14, "start", "0"), (right, foot + 14, "end", str(last)),
            ((_LEFT + right) // 2, foot + 14, "middle", xlabel)]  # fmt: skip
    parts += [f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>' for x, y, anchor, text in ends]
    about = html.escape(f"{title}, {ylabel}")
    key = "".join(f'<span style="color: var(--s{i % 10})">{html.escape(name)}</span>' for i, name in enumerate(series))
    return (f'<svg class="chart sketch" role="img" aria-label="{about}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
            f'{"".join(parts)}</svg><p class="key">{key if len(series) > 1 else ""}</p>')  # fmt: skip
