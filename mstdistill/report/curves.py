"""A run's learning curves, stage by stage, of what its epochs have left so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import charts
from .page import Page

Histories = Mapping[str, Sequence[Mapping[str, Any]]]


def finished_histories(folder: Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Figures per epoch of a run's finished stages, in the order of their ends."""
    paths = sorted(folder.glob("*/result.json"), key=lambda found: found.stat().st_mtime)
    return {path.parent.name: json.loads(path.read_text())["history"] for path in paths}


def add_curves(page: Page, histories: Histories, numbers: bool = True) -> None:
    """Loss and validation accuracy over the epochs of every stage.

    Args:
        histories: stage -> figures per epoch.
        numbers: whether each curve's numbers open below it.
    """
    page.heading("Learning")
    with page.side_by_side():
        for stage, history in histories.items():
            for title, ending in (
                ("loss", "loss"),
                ("validation accuracy", "accuracy"),
                ("validation mAP", "map_macro"),
            ):
                series = _series(history, ending)
                if series and len(history) > 1:
                    rows = [[str(i), *values] for i, values in enumerate(zip(*series.values(), strict=True))]
                    name = f"{stage}: {title}"
                    chart = charts.lines(name, series, "epoch", title)
                    page.figure(name, chart, ["epoch", *series], rows if numbers else [])


def _series(history: Sequence[Mapping[str, Any]], ending: str) -> dict[str, list[float]]:
    """Figures per epoch whose names end so, each once."""
    found: dict[str, list[float]] = {}
    for key in history[0] if history else ():
        if key.endswith(ending) and isinstance(history[0][key], float):
            values = [float(record[key]) for record in history]
            if values not in found.values():
                found[key] = values
    return found
