"""Charts as inline SVG, in the page's own colours, so that they follow light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError

# Stand-ins that `_inline` turns into the page's variables.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0a0b{i:02x}" for i in range(10))


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("pages with charts need matplotlib: pip install 'mstdistill[report]'") from None
    return matplotlib


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values [...] in [0, 1] to colours [..., 3] in [0, 1] that grow lighter with them."""
    colours: np.ndarray = _matplotlib().colormaps["inferno"](values)[..., :3]
    return colours


def _figure(width: float, height: float) -> tuple[Any, Any]:
    matplotlib = _matplotlib()
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "mstdistill", "text.color": INK, "axes.edgecolor": GRID,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    })  # fmt: skip
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")


def _inline(figure: Any, title: str) -> str:
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="chart"', svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for i, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--s{i})")
    # ids are the page's, not the picture's
    prefix = re.sub(r"\W+", "-", title)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def lines(title: str, series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """Curves over 0, 1, 2, ..."""
    figure, axes = _figure(5.6, 3.0)
    for i, (name, values) in enumerate(series.items()):
        axes.plot(range(len(values)), values, label=name, color=SERIES[i % 10], linewidth=1.6)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _inline(figure, title)


def curve(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    xlabel: str,
    ylabel: str,
    bold: Sequence[str] = (),
) -> str:
    """Figures along an axis, each (place, mean, half of its interval); the axis is logarithmic where that spreads them.

    Args:
        bold: names of the lines that are to be seen first.
    """  # fmt: skip
    figure, axes = _figure(5.6, 3.6)
    places = sorted({place for points in series.values() for place, _, _ in points})
    for i, (name, points) in enumerate(series.items()):
        x, means, halves = (np.array(column) for column in zip(*sorted(points), strict=True))
        strong = not bold or name in bold
        axes.plot(x, means, label=name, color=SERIES[i % 10], linewidth=2.2 if strong else 1.2, marker="o",
                  markersize=4 if strong else 2.5)  # fmt: skip
        if strong:
            halves = np.nan_to_num(halves)
            axes.fill_between(x, means - halves, means + halves, color=SERIES[i % 10], alpha=0.15, linewidth=0)
    if places[0] > 0 and places[-1] > 8 * places[0]:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _inline(figure, title)


def bars(title: str, values: Mapping[str, float], xlabel: str, errors: Mapping[str, float] | None = None) -> str:
    """Horizontal bars with the figure at their end."""
    figure, axes = _figure(5.6, 0.5 + 0.34 * len(values))
    names = list(values)[::-1]
    widths = [values[name] for name in names]
    spread = [(errors or {}).get(name, 0.0) for name in names] if errors else None
    axes.barh(names, widths, color=SERIES[0], xerr=spread, ecolor=INK, height=0.66)
    for y, x in enumerate(widths):
        axes.annotate(f"{x:.3f}", (x, y), xytext=(4 if not errors else 14, -3), textcoords="offset points", fontsize=8,
                      color=INK)  # fmt: skip
    axes.set_xlabel(xlabel)
    axes.margins(x=0.18)
    return _inline(figure, title)


def intervals(title: str, means: Mapping[str, float], halves: Mapping[str, float], xlabel: str) -> str:
    """Points with their intervals, to compare figures that lie close together.

    Args:
        halves: half of each interval; one that is far wider than most runs out of the picture.
    """
    figure, axes = _figure(5.6, 0.7 + 0.32 * len(means))
    names = list(means)[::-1]
    values, widths = np.array([means[n] for n in names]), np.array([halves[n] for n in names])
    usual = max(float(np.median(widths)), 0.1 * float(np.ptp(values)), 1e-3)
    low, high = values.min() - min(2 * usual, widths.max() + usual), (values + np.minimum(widths, usual)).max()
    axes.errorbar(values, names, xerr=widths, fmt="o", color=SERIES[0], ecolor=INK, elinewidth=1.2, markersize=6)
    for y, x in enumerate(values):
        axes.annotate(f"{x:.3f}", (x, y), xytext=(0, 5), textcoords="offset points", fontsize=8, ha="center",
                      color=INK)  # fmt: skip
    axes.set(xlim=(low, high + usual), xlabel=xlabel, ylim=(-0.6, len(names) - 0.3))
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return _inline(figure, title)


def histogram(title: str, counts: Sequence[float], low: float, high: float, xlabel: str) -> str:
    """How many fall into each of equal bins between two ends."""
    figure, axes = _figure(5.6, 2.6)
    width = (high - low) / len(counts)
    axes.bar([low + width * i for i in range(len(counts))], counts, width=0.92 * width, align="edge", color=SERIES[0])
    axes.set(xlim=(low, high), xlabel=xlabel, ylabel="instances")
    return _inline(figure, title)


def stacked(title: str, rows: Mapping[str, Sequence[float]], parts: Sequence[str], xlabel: str) -> str:
    """A horizontal bar a row, in parts."""
    figure, axes = _figure(5.6, 0.9 + 0.3 * len(rows))
    names = list(rows)[::-1]
    left = [0.0] * len(names)
    for i, part in enumerate(parts):
        widths = [rows[name][i] for name in names]
        axes.barh(names, widths, left=left, color=SERIES[i % 10], label=part, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel(xlabel)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return _inline(figure, title)


def heat(title: str, values: Sequence[Sequence[float]], names: Sequence[str], xlabel: str, ylabel: str) -> str:
    """A square of shares in [0, 1]; figures inside where there is room."""
    count = len(names)
    figure, axes = _figure(min(5.6, 1.6 + 0.36 * count), min(5.2, 1.3 + 0.32 * count))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.add_patch(_square(x, y, SERIES[0], float(value)))
            if count <= 12:
                axes.text(x, y, f"{value:.2f}".lstrip("0") if value < 1 else "1", ha="center", va="center", fontsize=7,
                          color=INK)  # fmt: skip
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel=xlabel, ylabel=ylabel)
    if count <= 20:
        axes.set_xticks(range(count), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(count), names, fontsize=8)
    return _inline(figure, title)


def _square(x: int, y: int, colour: str, opacity: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=max(0.0, min(1.0, 0.85 * opacity)), linewidth=0)
