"""Charts as inline SVG, in the page's own colours, so that they follow light and dark. Written as text, each takes a
millisecond: pages are drawn while a run goes on, and importing a plotting library takes longer than a page may."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .svg import WIDTH, Canvas, Scale, across, series, text_width, upward

# Heights of a row of bars, of a row with text above its mark, of an axis with its name, and a margin.
_ROW, _TALL, _AXIS, _PAD = 26, 34, 40, 8
# Names beside rows take this much of the width at most.
_NAMES = 0.42 * WIDTH
# Points of a curve; more can't be told apart on a screen.
_POINTS = 240
# From no evidence to most, each lighter than the one before.
_HEAT = np.array([(0.01, 0.01, 0.06), (0.25, 0.05, 0.42), (0.56, 0.14, 0.41), (0.85, 0.29, 0.24), (0.98, 0.60, 0.10),
                  (0.98, 0.95, 0.62)])  # fmt: skip


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values [...] in [0, 1] to colours [..., 3] in [0, 1] that grow lighter with them."""
    stops = np.linspace(0.0, 1.0, len(_HEAT))
    return np.stack([np.interp(values, stops, channel) for channel in _HEAT.T], axis=-1)


def lines(title: str, curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """Curves over 0, 1, 2, ...; their names below."""
    finite = [y for values in curves.values() for y in values if math.isfinite(y)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    last = max(len(values) for values in curves.values()) - 1
    canvas, foot = Canvas(title, 250), 250 - _AXIS
    x, y = Scale(0, max(last, 1), 62, WIDTH - 12), Scale(low - room, high + room, foot, _PAD)
    upward(canvas, y, x.start, x.end, ylabel)
    across(canvas, x, foot, foot, xlabel, whole=True)
    for number, values in enumerate(curves.values()):
        step = max(1, len(values) // _POINTS)
        kept = [*range(0, len(values) - 1, step), len(values) - 1]
        points = [(x(i), y(values[i])) for i in kept if math.isfinite(values[i])]
        if points:
            canvas.curve(points, series(number))
    return canvas.render() + (_key(list(curves)) if len(curves) > 1 else "")


def along(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    xlabel: str,
    ylabel: str,
    first: Sequence[str] = (),
) -> str:
    """Figures at places of an axis, each (place, mean, half of its interval); names in the picture. The axis is
    logarithmic where its places spread over more than a factor of eight.

    Args:
        first: curves that are to be seen first: with their intervals and thicker; none: all.
    """  # fmt: skip
    points = [point for curve in curves.values() for point in curve]
    places = sorted({place for place, *_ in points})
    bent = places[0] > 0 and places[-1] > 8 * places[0]
    strong = {name for name in curves if not first or name in first}
    means = [mean for _, mean, _ in points]
    beyond = 0.1 * (max(means) - min(means))  # of few seeds an interval would be the whole picture
    sides = [(mean - half, mean + half) for name in strong for _, mean, half in curves[name]]
    low = min(*means, max(min(low for low, _ in sides), min(means) - beyond))
    high = max(*means, min(max(high for _, high in sides), max(means) + beyond))
    room = 0.04 * (high - low) or 1e-3
    foot = 290.0
    canvas = Canvas(title, foot + _AXIS + 18 * -(-len(curves) // 2) + _PAD)

    def bend(place: float) -> float:
        return math.log(place) if bent else place

    x, y = Scale(bend(places[0]), bend(places[-1]), 70, WIDTH - 20), Scale(low - room, high + room, foot, _PAD)
    upward(canvas, y, x.start - 8, x.end + 8, ylabel)
    canvas.line(x.start - 8, foot, x.end + 8, foot)
    for place in places:
        canvas.text(x(bend(place)), foot + 15, f"{place:g}", "middle", 11, soft=True)
    canvas.text((x.start + x.end) / 2, foot + 31, xlabel, "middle", most=WIDTH)
    for number, (name, curve) in enumerate(curves.items()):
        at = [(x(bend(place)), mean, half) for place, mean, half in sorted(curve)]
        for left, mean, half in at if name in strong else ():
            if half > 0:
                canvas.line(left, y(mean - half), left, y(mean + half), series(number), 1.2)
        wide = 2.6 if name in strong else 1.1
        canvas.curve([(left, y(mean)) for left, mean, _ in at], series(number), wide)
        left, top = 16 + (WIDTH - 16) / 2 * (number % 2), foot + _AXIS + 14 + 18 * (number // 2)
        canvas.line(left, top - 4, left + 18, top - 4, series(number), max(wide, 1.8))
        canvas.text(left + 24, top, name, size=11, most=WIDTH / 2 - 44)
    return canvas.render()


def bars(title: str, values: Mapping[str, float], xlabel: str) -> str:
    """Horizontal bars from 0, with the figure at their end."""
    canvas, left = Canvas(title, _PAD + _ROW * len(values) + _AXIS), _left(values)
    x = Scale(min(0.0, *values.values()), max(0.0, *values.values()) or 1.0, left, WIDTH - 52)
    across(canvas, x, _PAD, canvas.height - _AXIS, xlabel)
    for row, (name, value) in enumerate(values.items()):
        top = _PAD + _ROW * row
        canvas.text(left - 8, top + 17, name, "end", most=left - 8)
        canvas.box(min(x(0.0), x(value)), top + 4, abs(x(value) - x(0.0)), _ROW - 8, series(0))
        canvas.text(max(x(0.0), x(value)) + 5, top + 17, f"{value:.3f}", size=11)
    return canvas.render()


def intervals(
    title: str, means: Mapping[str, float], halves: Mapping[str, float | tuple[float, float]], xlabel: str
) -> str:
    """Points with their intervals, to compare figures that lie close together.

    Args:
        halves: half of each interval, or its parts below and above; one that is far wider than most runs out of the
            picture.
    """
    canvas, left = Canvas(title, _PAD + _TALL * len(means) + _AXIS), _left(means)
    values = np.array(list(means.values()))
    sides = np.array([np.broadcast_to(np.asarray(halves[name], float), 2) for name in means]).T  # [2, names]
    widths = sides.max(axis=0)
    usual = max(float(np.median(widths)), 0.1 * float(np.ptp(values)), 1e-3)
    kept = np.minimum(sides, 2 * usual)
    room = 0.06 * float((values + kept[1]).max() - (values - kept[0]).min()) or 1e-3
    x = Scale(float((values - kept[0]).min()) - room, float((values + kept[1]).max()) + room, left, WIDTH - 18)
    across(canvas, x, _PAD, canvas.height - _AXIS, xlabel)
    for row, (name, value) in enumerate(means.items()):
        y = _PAD + _TALL * row + 22
        canvas.text(left - 8, y + 4, name, "end", most=left - 8)
        canvas.line(x(value - sides[0, row]), y, x(value + sides[1, row]), y, "var(--ink)", 1.4)
        for end in (value - sides[0, row], value + sides[1, row]):
            if x.low <= end <= x.high and widths[row] > 0:
                canvas.line(x(end), y - 4, x(end), y + 4, "var(--ink)", 1.4)
        canvas.dot(x(value), y, series(0))
        canvas.text(x(value), y - 8, f"{value:.3f}", "middle", 11)
    return canvas.render()


def histogram(title: str, counts: Sequence[float], low: float, high: float, xlabel: str) -> str:
    """How many fall into each of equal bins between two ends."""
    canvas, foot = Canvas(title, 220), 220 - _AXIS
    x, y = Scale(low, high, 62, WIDTH - 12), Scale(0, max(1.0, *counts), foot, _PAD)
    upward(canvas, y, x.start, x.end, "instances")
    across(canvas, x, foot, foot, xlabel)
    width = (x.end - x.start) / len(counts)
    for number, count in enumerate(counts):
        canvas.box(x.start + width * (number + 0.04), y(count), 0.92 * width, foot - y(count), series(0))
    return canvas.render()


def stacked(title: str, rows: Mapping[str, Sequence[float]], parts: Sequence[str], xlabel: str) -> str:
    """A horizontal bar a row, in parts that sum to 1 or less; the parts' names below."""
    canvas, left = Canvas(title, _PAD + _ROW * len(rows) + _AXIS), _left(rows)
    x = Scale(0.0, max(1.0, *(sum(shares) for shares in rows.values())), left, WIDTH - 18)
    across(canvas, x, _PAD, canvas.height - _AXIS, xlabel)
    for row, (name, shares) in enumerate(rows.items()):
        top, start = _PAD + _ROW * row, 0.0
        canvas.text(left - 8, top + 17, name, "end", most=left - 8)
        for number, share in enumerate(shares):
            canvas.box(x(start), top + 3, x(start + share) - x(start), _ROW - 6, series(number))
            start += share
    return canvas.render() + _key(parts)


def heat(title: str, values: Sequence[Sequence[float]], names: Sequence[str], xlabel: str, ylabel: str) -> str:
    """A square of shares in [0, 1]; figures inside where there is room."""
    count = len(names)
    named = count <= 20
    wanted = max(text_width(name, 11) for name in names) if named else 0.0
    aside = 10 + min(wanted, 0.3 * WIDTH) + (18 if ylabel else 0)
    cell = min(40.0, (WIDTH - aside - 8) / count)
    over = 8 + (min(wanted, 110.0) if named and (wanted > cell - 4) else 14.0 if named else 0.0)
    canvas = Canvas(title, over + cell * count + (24 if xlabel else 8))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            left, top = aside + cell * x, over + cell * y
            canvas.box(left, top, cell, cell, series(0), max(0.0, min(1.0, 0.85 * value)))
            if count <= 12 and value >= 0.005:
                shown = f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
                canvas.text(left + cell / 2, top + cell / 2 + 4, shown, "middle", 10)
    for number, name in enumerate(names if named else ()):
        canvas.text(aside - 5, over + cell * (number + 0.5) + 4, name, "end", 11, 0.3 * WIDTH)
        if wanted > cell - 4:
            canvas.text(aside + cell * (number + 0.5) + 4, over - 5, name, "start", 11, 110, turned=-90)
        else:
            canvas.text(aside + cell * (number + 0.5), over - 5, name, "middle", 11)
    canvas.text(aside + cell * count / 2, canvas.height - 8, xlabel, "middle")
    canvas.text(12, over + cell * count / 2, ylabel, "middle", turned=-90)
    return canvas.render()


def _left(names: Mapping[str, object]) -> float:
    """Where rows begin that have their names at the left."""
    return 12 + min(max(text_width(name) for name in names), _NAMES)


def _key(names: Sequence[str]) -> str:
    """Whose colour is whose; text in a colour of its own could be too pale to read."""
    marks = (f'<span><i style="background: {series(i)}"></i>{html.escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="key">{"".join(marks)}</p>'
