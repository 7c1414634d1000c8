"""Tables of a data set that was looked over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from .look import Report

_MOST_CLASSES = 20


def report_tables(report: Report) -> list[Any]:
    """Modalities, classes, then what is wrong and what is odd."""
    figures = report.figures
    splits = ", ".join(f"{name} {count:,}" for name, count in figures["splits"].items())
    table = Table(title=f"{figures['data']}   ({splits})", title_justify="left", show_header=True)
    table.add_column("modality")
    found = figures["modalities"]
    for name in found:
        table.add_column(name)
    for title, show in _ROWS.items():
        table.add_row(title, *[show(found[name]) for name in found])
    shown: list[Any] = [table, _classes(figures["label"])]
    shown += [f"wrong: {text}" for text in report.wrong]
    shown += [f"odd: {text}" for text in report.odd]
    shown.append("usable" + (", with a look at what is odd" if report.odd else "") if report.usable else
                 "not usable as it is")  # fmt: skip
    return shown


def _shape(found: dict[str, Any]) -> str:
    if isinstance(found["shape"], str):
        return "differs"
    unit = {"text": " characters", "audio": " samples"}.get(found["kind"], "")
    shape = "x".join(map(str, found["shape"]))
    if found["smallest_shape"] is None:
        return shape + unit
    return f"{'x'.join(map(str, found['smallest_shape']))} to {shape}{unit}"


def _range(values: list[float] | None) -> str:
    return f"{values[0]:.3g} to {values[1]:.3g}" if values else ""


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kind": lambda found: found["kind"],
    "shape": _shape,
    "type": lambda found: ", ".join(found["types"]),
    "range": lambda found: _range(found["range"]),
    "there": lambda found: f"{100 * found['present']:.1f} %",
    "missing, empty": lambda found: f"{found['missing']:,}, {found['empty']:,}",
    "unreadable": lambda found: f"{found['unreadable']:,}",
    "with NaN, Inf": lambda found: f"{found['with_nan']:,}, {found['with_inf']:,}",
    "constant": lambda found: f"{found['constant']:,}",
    "repeated": lambda found: f"{found['duplicates']:,}",
}


def _classes(label: dict[str, Any]) -> Table:
    ratio = f", commonest over rarest {label['imbalance']:.1f}" if label["imbalance"] else ""
    unit = ", counted in pixels" if label["maps"] else ""
    table = Table(title=f"{len(label['classes'])} classes{ratio}{unit}", title_justify="left")
    table.add_column("class")
    splits = list(label["by_split"])
    for split in splits:
        table.add_column(split, justify="right")
    for number, name in enumerate(label["classes"]):
        if number == _MOST_CLASSES:
            table.add_row(f"... and {len(label['classes']) - number} more", *[""] * len(splits))
            break
        table.add_row(name, *[f"{label['by_split'][split].get(name, 0):,}" for split in splits])
    return table
