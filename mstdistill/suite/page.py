"""The page of a suite: what was gained, figures with intervals, comparisons, ranks, what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import first_line
from ..files import write_text
from ..report import charts
from ..report.budget import Budget
from ..report.page import PAGE, Page, standalone
from .plan import Grid, records
from .stats import paired
from .tables import Column, Findings, along, figures_grid, judge, percent

# Seconds after which a browser asks for the page of a suite that goes on anew.
RELOAD_SECONDS = 30
# Columns that the first sentence speaks of; lines on what is missing that stand open.
_SAID, _OPEN = 2, 10
# What a page takes, with the statistics in it, in seconds.
_EXPECTED = 0.3


class SuitePage:
    """Renewed whenever a worker has finished a cell and a page is due; whole at the end.

    Args:
        wanted: False: there is none.
        warn: told if it can't be drawn; the suite goes on.
    """

    def __init__(self, grid: Grid, folder: Path, wanted: bool, warn: Callable[[str], None]) -> None:
        self.grid, self.folder, self.wanted, self.warn = grid, folder, wanted, warn
        self.budget = Budget(_EXPECTED)

    def renew(self) -> None:
        """A cell more is finished."""
        if self.wanted and self.budget.due():
            with self.budget.spending():
                self._write(RELOAD_SECONDS)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within the block the suite goes on; where it is stopped, its page reloads no longer."""
        try:
            yield
        except BaseException:
            self.finish()
            raise

    def finish(self) -> Path | None:
        """The suite goes on no longer; None where it has no page."""
        return self._write(0) if self.wanted else None

    def _write(self, reload: int) -> Path | None:
        try:
            return write_suite_page(judge(self.grid, records(self.grid, self.folder)), self.folder, reload)
        except Exception as error:  # a full disk, fonts: not worth a suite
            self.wanted = False
            self.warn(f"warning: the suite's page can't be drawn ({first_line(error)}); its tables are whole")
            return None


def write_suite_page(found: Findings, folder: Path, reload: int = 0) -> Path:
    """Write report.html into a suite's folder, and each column's chart beside it as TASK-TARGET.svg.

    Args:
        reload: seconds between two looks of a browser, while the suite goes on.
    """
    suite = found.grid.suite
    seeds = ", ".join(map(str, suite.seeds))
    page = Page(suite.name, f"{suite.about} {suite.split.capitalize()} {suite.metric}, seeds {seeds}.", reload)
    page.lead(*_gained(found))
    if reload:
        count = sum(len(by_seed) for methods in found.values.values() for by_seed in methods.values())
        page.say(f"{count} of {len(found.grid.cells)} runs are done; this page is renewed while the suite goes on.")
        page.progress(count, len(found.grid.cells), "runs")
    _along(page, found, folder)
    for number, column in enumerate(found.spreads):
        _column(page, found, column, folder)
        if number == 0:
            page.heading("All")
            header, rows, _ = figures_grid(found)
            page.table(header, rows)
    if found.trouble:
        page.heading("Not in the tables")
        for line in found.trouble[:_OPEN]:
            page.say(line)
        if more := found.trouble[_OPEN:]:
            page.text(f"{len(more)} more", "\n".join(more))
    path = folder / PAGE
    write_text(path, page.render())
    return path


def _along(page: Page, found: Findings, folder: Path) -> None:
    """A curve for each target over the tasks that have a place on the suite's axis; also as along-TARGET.svg."""
    suite = found.grid.suite
    for target, curves in along(found).items():
        title = f"Student sees {target}: {suite.split} {suite.metric} over {suite.axis or 'tasks'}, with 95 % intervals"
        first = [name for name in suite.first if name in curves]
        chart = charts.along(title, curves, suite.axis, f"{suite.split} {suite.metric}", first)
        rows = [[name, place, mean, half] for name, curve in curves.items() for place, mean, half in curve]
        page.figure(title, chart, ["method", suite.axis, "mean", "half of the 95 % interval"], rows)
        write_text(folder / f"along-{target}.svg", standalone(chart))


def _column(page: Page, found: Findings, column: Column, folder: Path) -> None:
    suite, spreads = found.grid.suite, found.spreads[column]
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
    page.say(f"Paired by seed against {found.reference[column]}; p from the paired t-test after Holm's correction.")
    page.table(
        ["method", "difference", "low", "high", "p", "seeds"],
        [[n, -c.difference, -c.high, -c.low, c.adjusted, str(c.pairs)] for n, c in found.comparisons[column].items()],
    )


def _gained(found: Findings) -> tuple[str, str]:
    """The best of each column against the student alone, in one sentence; and how its intervals were computed."""
    suite = found.grid.suite
    alone = next((method.name for method in suite.methods if method.method == "alone"), None)
    times, parts, intervals = percent(suite.metric), [], False
    unit, digits = (" %", 1) if times > 1 else ("", 3)
    for column in list(found.spreads)[:_SAID]:
        means = {name: spread.mean for name, spread in found.spreads[column].items()}
        top = max(means, key=lambda name: means[name])
        said = f"{column[0]}, student sees {column[1]}: {top} is best with {times * means[top]:.{digits}f}{unit}"
        if alone in means and alone != top:
            methods = found.values[column]
            c = paired(methods[top], methods[alone])
            if c.pairs:
                said += f", {times * c.difference:+.{digits}f} over {alone}"
            if not math.isnan(c.low):
                intervals = True
                said += f" (95 % interval {times * c.low:+.{digits}f} to {times * c.high:+.{digits}f})"
        parts.append(said)
    if not parts:
        return "No run is done yet.", ""
    more = f"; {len(found.spreads) - _SAID} more below" if len(found.spreads) > _SAID else ""
    how = f"Mean {suite.split} {suite.metric} over seeds; the best was picked on these very figures."
    if intervals:
        how += " Intervals: Student's t over differences paired by seed, not corrected for the number of methods."
    return "; ".join(parts) + more + ".", how
