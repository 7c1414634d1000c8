"""A small SVG canvas for charts: text, lines and boxes in the page's colours, axes with round numbers."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence

# Of every chart, in units of which text has FONT: on a phone that is hardly narrower, text stays large enough.
WIDTH, FONT = 420, 13
# Of the font's size: what a letter takes on average, a wide one (Chinese, Japanese, Korean) at most.
_LETTER, _WIDE = 0.56, 1.0
_SHORTENED = "…"


def series(number: int) -> str:
    """The colour of a chart's curve or part."""
    return f"var(--s{number % 10})"


def text_width(text: str, size: float = FONT) -> float:
    """About what a text takes."""
    return size * sum(_WIDE if unicodedata.east_asian_width(letter) in "WF" else _LETTER for letter in text)


def shortened(text: str, most: float, size: float = FONT) -> str:
    """As much of a text as fits."""
    if text_width(text, size) <= most:
        return text
    while text and text_width(text + _SHORTENED, size) > most:
        text = text[:-1]
    return text + _SHORTENED


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, both within.

    Args:
        most: how many there may be, at least 2.
        whole: no fractions.
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= rough * (1 - 1e-9))
    step = float(math.ceil(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's number, without noise of its arithmetic."""
    return f"{value:.6g}".replace("-", "\u2212")


class Canvas:
    """Parts of a picture that is WIDTH wide; y grows downwards.

    Args:
        title: for people who listen to the page.
        height: of the picture.
    """

    def __init__(self, title: str, height: float) -> None:
        self.title, self.height, self.parts = title, height, list[str]()

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", size: float = FONT, most: float = math.inf,
        turned: int = 0, soft: bool = False,
    ) -> None:  # fmt: skip
        """A text whose baseline is at y.

        Args:
            most: it may take; a longer one is shortened and shows itself whole under the pointer.
            turned: degrees, clockwise.
        """
        shown = shortened(text, most, size)
        whole = "" if shown == text else f"<title>{html.escape(text, quote=False)}</title>"
        options = f' font-size="{size:g}"' if size != FONT else ""
        options += f' transform="rotate({turned} {x:.1f} {y:.1f})"' if turned else ""
        options += ' class="soft"' if soft else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{options}>{whole}'
            f"{html.escape(shown, quote=False)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "var(--line)", wide: float = 1) -> None:
        """A straight line."""
        self.parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{wide:g}"/>')

    def curve(self, points: Sequence[tuple[float, float]], colour: str, wide: float = 1.8) -> None:
        """Points joined by lines; one alone is a dot."""
        if len(points) == 1:
            self.dot(*points[0], colour)
            return
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide:g}"/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        """A point that is seen."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> None:
        """A filled box."""
        seen = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}"{seen}/>'
        )

    def render(self) -> str:
        """The picture, no larger than its text wants."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(self.title)}" class="chart" '
            f'viewBox="0 0 {WIDTH} {self.height:g}" font-family="system-ui, sans-serif" font-size="{FONT}" '
            f'fill="var(--ink)">{"".join(self.parts)}</svg>'
        )


class Scale:
    """From values to places on a canvas.

    Args:
        low, high: values at `start` and `end`.
    """

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """Where a value lies; those beyond the ends, at them."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


def across(canvas: Canvas, scale: Scale, top: float, foot: float, name: str, whole: bool = False) -> None:
    """An axis below, with a thin line up from each of its numbers, and what it shows."""
    canvas.line(scale.start, foot, scale.end, foot)
    for tick in ticks(scale.low, scale.high, whole=whole):
        canvas.line(scale(tick), foot, scale(tick), top, wide=0.5)
        canvas.text(scale(tick), foot + 15, label(tick), "middle", 11, soft=True)
    canvas.text((scale.start + scale.end) / 2, foot + 31, name, "middle", most=WIDTH)


def upward(canvas: Canvas, scale: Scale, left: float, right: float, name: str) -> None:
    """An axis at the left, likewise."""
    for tick in ticks(scale.low, scale.high):
        canvas.line(left, scale(tick), right, scale(tick), wide=0.5)
        canvas.text(left - 5, scale(tick) + 4, label(tick), "end", 11, soft=True)
    canvas.text(12, (scale.start + scale.end) / 2, name, "middle", turned=-90)
