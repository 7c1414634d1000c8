"""The page of a suite: figures with intervals, comparisons, ranks, what is missing."""

from __future__ import annotations

import math
from pathlib import Path

from ..files import write_text
from ..suite.tables import Findings, figures_grid
from . import charts
from .page import Page, standalone


def write_suite_page(found: Findings, folder: Path) -> Path:
    """Write report.html into a suite's folder, and each column's chart beside it as TASK-TARGET.svg.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    suite = found.grid.suite
    seeds = ", ".join(map(str, suite.seeds))
    page = Page(suite.name, f"{suite.about} {suite.split.capitalize()} {suite.metric}, seeds {seeds}.")
    page.heading("All")
    header, rows, _ = figures_grid(found)
    page.table(header, rows)
    for column, spreads in found.spreads.items():
        page.heading(f"{column[0]}: student sees {column[1]}")
        ordered = sorted(spreads, key=lambda name: -spreads[name].mean)
        means = {name: spreads[name].mean for name in ordered}
        halves = {name: 0.0 if math.isnan(spreads[name].half) else spreads[name].half for name in ordered}
        figures = [[name, s.mean, s.deviation, s.half, str(s.count)] for name in ordered for s in [spreads[name]]]
        title = f"{column[0]}, {column[1]}: mean and 95 % interval over seeds"
        titles = ["method", "mean", "standard deviation", "half of the 95 % interval", "seeds"]
        chart = charts.intervals(title, means, halves, f"{suite.split} {suite.metric}")
        page.figure(title, chart, titles, figures)
        write_text(folder / f"{column[0]}-{column[1]}.svg", standalone(chart))
        reference = found.reference[column]
        page.say(f"Paired by seed against {reference}; p from the paired t-test after Holm's correction.")
        page.table(
            ["method", "difference", "low", "high", "p", "seeds"],
            [
                [n, -c.difference, -c.high, -c.low, c.adjusted, str(c.pairs)]
                for n, c in found.comparisons[column].items()
            ],
        )
    if found.trouble:
        page.heading("Not in the tables")
        for line in found.trouble:
            page.say(line)
    path = folder / "report.html"
    write_text(path, page.render())
    return path
