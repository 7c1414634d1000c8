"""A suite's tables: each method on each task, compared with the reference; Markdown, CSV, LaTeX and the terminal.

A figure is bold only where its method is the best of its column and the paired test, corrected for the number of
methods, tells it from every other one.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from ..markup import latex as escaped
from ..markup import markdown_table, plain
from .plan import Cell, Grid
from .stats import LEVEL, Comparison, Spread, holm, paired, ranks, spread

Column = tuple[str, str]


@dataclass
class Findings:
    """What the cells that are done show.

    Attributes:
        values: column -> method -> seed -> figure.
        spreads, comparisons: column -> method -> ...; comparisons are with the column's reference.
        reference: of each column.
        best: the method that a column's test tells from every other; a column without one is missing.
        ranks: mean rank of each method over the columns that have all methods.
        teachers: column -> teacher -> figures over seeds.
        trouble: lines about cells that are missing, failed or refused.
    """

    grid: Grid
    values: dict[Column, dict[str, dict[int, float]]] = field(default_factory=dict)
    spreads: dict[Column, dict[str, Spread]] = field(default_factory=dict)
    comparisons: dict[Column, dict[str, Comparison]] = field(default_factory=dict)
    reference: dict[Column, str] = field(default_factory=dict)
    best: dict[Column, str] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    teachers: dict[Column, dict[str, Spread]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)


def judge(grid: Grid, records: Mapping[Cell, Mapping[str, Any]]) -> Findings:
    """Figures, intervals, tests and ranks of the finished cells."""
    found = Findings(grid)
    metric, split = grid.suite.metric, grid.suite.split
    teachers: dict[Column, dict[tuple[str, str], dict[int, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for cell in grid.cells:
        record, column = records.get(cell), (cell.task, cell.target)
        if record is None:
            found.trouble.append(f"{cell.title}: not run yet")
        elif record["status"] != "done":
            found.trouble.append(f"{cell.title}: {record['status']}: {record['reason']}")
        else:
            student = record["networks"]["distilled student"][split][metric]
            found.values.setdefault(column, {}).setdefault(cell.method, {})[cell.seed] = student
            seconds.setdefault(cell.method, []).append(record["seconds"] + record["seconds_borrowed"])
            for name, entry in record["networks"].items():
                if name.startswith("teacher"):
                    of = name, cell.method if cell.recipe.method == "mst" else ""
                    teachers.setdefault(column, {}).setdefault(of, {})[cell.seed] = entry[split][metric]
    found.teachers = {column: _teachers(figures) for column, figures in teachers.items()}
    found.seconds = {method: sum(values) / len(values) for method, values in seconds.items()}
    for column, methods in found.values.items():
        _judge_column(found, column, methods)
    names = {method.name for method in grid.suite.methods}
    whole = [{m: s.mean for m, s in spreads.items()} for spreads in found.spreads.values() if spreads.keys() == names]
    found.ranks = ranks(whole)
    return found


def _teachers(figures: Mapping[tuple[str, str], Mapping[int, float]]) -> dict[str, Spread]:
    """Figures over seeds by a teacher's name and who trained it; a line for all methods that share one."""
    shared: dict[tuple[str, tuple[tuple[int, float], ...]], list[str]] = {}
    for (name, method), values in sorted(figures.items(), key=lambda item: item[0][0]):
        shared.setdefault((name, tuple(sorted(values.items()))), []).append(method)
    found = {}
    for (name, by_seed), methods in shared.items():
        more = f" and {len(methods) - 1} more" if len(methods) > 1 else ""
        found[f"{name} ({methods[0]}{more})" if methods[0] else name] = spread([value for _, value in by_seed])
    return found


def _judge_column(found: Findings, column: Column, methods: Mapping[str, Mapping[int, float]]) -> None:
    found.spreads[column] = {name: spread(list(values.values())) for name, values in methods.items()}
    top = max(methods, key=lambda name: found.spreads[column][name].mean)
    wanted = found.grid.suite.reference
    reference = wanted if wanted is not None and wanted in methods else top
    found.reference[column] = reference

    def against(name: str) -> dict[str, Comparison]:
        return holm({other: paired(methods[name], values) for other, values in methods.items() if other != name})

    found.comparisons[column] = against(reference)
    rivals = against(top).values()
    if rivals and all(rival.adjusted < LEVEL and rival.difference > 0 for rival in rivals):
        found.best[column] = top


def along(found: Findings) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Target -> method -> (place, mean, half of its 95 % interval), over tasks that have a place on the suite's axis.
    One with a single place has no curve."""
    places = {(task.name or task.recipe, target): task.at for task in found.grid.suite.tasks for target in task.targets}
    curves: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for (task, target), spreads in found.spreads.items():
        place = places.get((task, target))
        for name, s in spreads.items() if place is not None else ():
            half = 0.0 if math.isnan(s.half) else s.half
            curves.setdefault(target, {}).setdefault(name, []).append((float(place or 0), s.mean, half))
    return {target: methods for target, methods in curves.items() if any(len(c) > 1 for c in methods.values())}


def save(found: Findings, folder: Path) -> list[Path]:
    """Write table.md, table.csv, table.tex and table.json."""
    rows = [["task", "target", "method", "seed", found.grid.suite.metric]]
    for (task, target), methods in found.values.items():
        rows += [[task, target, name, str(seed), repr(float(value))] for name, values in methods.items()
                 for seed, value in sorted(values.items())]  # fmt: skip
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    paths = [folder / f"table.{kind}" for kind in ("md", "csv", "tex", "json")]
    for path, content in zip(paths, (markdown(found), text.getvalue(), latex(found), _json(found)), strict=True):
        write_text(path, content)
    return paths


def _json(found: Findings) -> str:
    def plain(x: float) -> float | None:
        return None if math.isnan(x) else x

    suite = found.grid.suite.model_dump()
    # where data lie is one machine's own, and decides no figure
    for part in (suite, *suite["tasks"], *suite["methods"]):
        part["overrides"] = [one for one in part["overrides"] if not one.startswith("data.dir=")]
    return json.dumps({
        "suite": suite,
        "columns": [{
            "task": column[0], "target": column[1], "reference": found.reference[column],
            "best": found.best.get(column),
            "methods": {name: {"values": found.values[column][name],
                               **{k: plain(v) for k, v in vars(s).items()}} for name, s in spreads.items()},
            "comparisons": {name: {k: plain(v) for k, v in vars(c).items()}
                            for name, c in found.comparisons[column].items()},
            "teachers": {name: {k: plain(v) for k, v in vars(s).items()}
                         for name, s in found.teachers.get(column, {}).items()},
        } for column, spreads in found.spreads.items()],
        "ranks": found.ranks, "seconds": found.seconds, "trouble": found.trouble,
    }, indent=1)  # fmt: skip


def percent(metric: str) -> float:
    """What a figure is multiplied by to be shown: shares are shown in %."""
    return 1.0 if metric in ("loss", "kappa") else 100.0


def _shown(s: Spread | None, metric: str, plus_minus: str = "±") -> str:
    if s is None:
        return "–"
    times = percent(metric)
    text = f"{times * s.mean:.{1 if times > 1 else 3}f}"
    return text if math.isnan(s.deviation) else f"{text} {plus_minus} {times * s.deviation:.{1 if times > 1 else 3}f}"


def _gap(c: Comparison | None, metric: str) -> str:
    if c is None:
        return ""
    times = percent(metric)
    if math.isnan(c.p):
        return f"{-times * c.difference:+.1f}"
    return (f"{-times * c.difference:+.1f} [{-times * c.high:+.1f}, {-times * c.low:+.1f}], p = "
            f"{c.adjusted:.2g}")  # fmt: skip


def figures_grid(found: Findings) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Header, rows and what is bold in them: methods down, columns across, mean rank and seconds last."""
    metric, columns = found.grid.suite.metric, list(found.spreads)
    header = ["method", *(f"{task}, {target}" for task, target in columns), "mean rank", "seconds a run"]
    rows, bold = [], []
    for method in found.grid.suite.methods:
        name = method.name
        rank = f"{found.ranks[name]:.1f}" if name in found.ranks else "–"
        took = f"{found.seconds[name]:.0f}" if name in found.seconds else "–"
        rows.append([name, *(_shown(found.spreads[c].get(name), metric) for c in columns), rank, took])
        bold.append([False, *(found.best.get(c) == name for c in columns), False, False])
    return header, rows, bold


def markdown(found: Findings) -> str:
    """Everything, for people."""
    suite, metric = found.grid.suite, found.grid.suite.metric
    header, rows, bold = figures_grid(found)
    unit = " in %" if percent(metric) > 1 else ""
    seeds = ", ".join(map(str, suite.seeds))
    parts = [
        f"# {plain(suite.name)}",
        suite.about,
        f"{suite.split.capitalize()} {metric}{unit}, mean ± standard deviation over seeds {seeds}. Bold: the best of "
        f"its column, told from every other method by a paired t-test over seeds at {LEVEL} after Holm's correction.",
        markdown_table(header, rows, bold),
    ]
    for column, comparisons in found.comparisons.items():
        reference = found.reference[column]
        chosen = "" if suite.reference == reference else " (the best here, chosen on these very figures)"
        lines = [[name, _gap(c, metric), f"{c.pairs - c.wins if c.difference <= 0 else c.wins} of {c.pairs}"]
                 for name, c in comparisons.items()]  # fmt: skip
        titles = ["method", f"difference{unit} [95 % interval], adjusted p", "seeds that agree"]
        parts += [
            f"## {plain(f'{column[0]}, student sees {column[1]}: against {reference}')}{chosen}",
            markdown_table(titles, lines),
        ]
        teachers = [[name, _shown(s, metric)] for name, s in found.teachers.get(column, {}).items()]
        if teachers:
            parts.append(markdown_table(["teacher", f"{suite.split} {metric}{unit}"], teachers))
    if found.trouble:
        parts += ["## Not in the tables", "\n".join(f"- {plain(line)}" for line in found.trouble)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(found: Findings) -> str:
    """The first table, for a paper (booktabs)."""
    header, rows, bold = figures_grid(found)

    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule",
             " & ".join(map(escaped, header)) + r" \\", r"\midrule"]  # fmt: skip
    for row, marks in zip(rows, bold, strict=True):
        cells = [rf"\textbf{{{escaped(x)}}}" if b else escaped(x) for x, b in zip(row, marks, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def shown(found: Findings) -> Any:
    """The first table, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    header, rows, bold = figures_grid(found)
    suite = found.grid.suite
    unit = " in %" if percent(suite.metric) > 1 else ""
    table = Table(title=f"{suite.name}: {suite.split} {suite.metric}{unit}", title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row, marks in zip(rows, bold, strict=True):
        table.add_row(*(Text(x, style="bold") if b else x for x, b in zip(row, marks, strict=True)))
    return table
