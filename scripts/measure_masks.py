"""What stage 2's objectives make of the masks, and what that is worth to the student: the suite av-digits-masks, and of
each run's masks mean and spread over the validation instances.

    python scripts/measure_masks.py --out docs/results/masks.json      (20 minutes, one core)

Prints the tables of docs/results.md. Called again with the same --runs it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mstdistill.engine.progress import Screen
from mstdistill.files import write_text
from mstdistill.pipeline import load_run
from mstdistill.report.figures import networks_of, specialised
from mstdistill.report.mixture import taught
from mstdistill.suite.plan import load_suite, plan, records
from mstdistill.suite.run import run_suite
from mstdistill.suite.stats import spread

SPLIT = "validation"


def masks_of(run: Path) -> dict[str, Any]:
    """Of a finished run each mask's figures, see `report.mixture`."""
    experiment, _ = load_run(run, Screen(quiet=True))
    networks_of(experiment, experiment.student, with_alone=False)  # the teachers take up their weights
    found: dict[str, Any] = taught(experiment, experiment.student, specialised(experiment), SPLIT)["masks"]
    return found


def row(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one objective's runs over the seeds: the student's accuracy, and how its masks lie."""
    accuracy = spread([100 * cell["accuracy"] for cell in cells])
    masks = [mask for cell in cells for mask in cell["masks"].values()]
    between = [mask["between_instances"] for mask in masks]
    return {
        "accuracy": accuracy.mean,
        "deviation": accuracy.deviation,
        "mean": sum(mask["mean"] for mask in masks) / len(masks) if masks else None,
        "between_features": sum(mask["between_features"] for mask in masks) / len(masks) if masks else None,
        "between_instances": sum(between) / len(between) if masks else None,
        "largest_between_instances": max(between) if masks else None,
    }


def lines(rows: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> list[str]:
    """Two tables in Markdown, an objective a line, a task and target a column: the student, then the masks."""
    columns = list(dict.fromkeys(key[:2] for key in rows))
    objectives = list(dict.fromkeys(key[2] for key in rows))
    heads = "".join(f" {task}, {target} |" for task, target in columns)
    rule = "| --- |" + " --: |" * len(columns)

    def line(objective: str, said: Callable[[Mapping[str, Any]], str]) -> str:
        cells = [rows.get((*column, objective)) for column in columns]
        return f"| {objective} |" + "".join(f" {said(cell) if cell else ''} |" for cell in cells)

    def masks(cell: Mapping[str, Any]) -> str:
        return f"{cell['mean']:.2f}; {cell['between_instances']:.3f}, {cell['largest_between_instances']:.3f}"

    found = [f"| student: validation accuracy in % |{heads}", rule]
    found += [
        line(objective, lambda cell: f"{cell['accuracy']:.1f} ± {cell['deviation']:.1f}") for objective in objectives
    ]
    found += ["", f"| masks: mean; spread over instances: mean, largest |{heads}", rule]
    masked = [one for one in objectives if any(cell["mean"] is not None for key, cell in rows.items() if key[2] == one)]
    return found + [line(objective, masks) for objective in masked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/suite-av-digits-masks"))
    parser.add_argument("--out", type=Path, default=Path("masks.json"))
    parser.add_argument("settings", nargs="*", help="of all cells, as key=value; seeds=[...] too")
    options = parser.parse_args()
    grid = plan(load_suite("av-digits-masks", options.settings))
    run_suite(grid, options.runs, 1, [], Screen())
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell, record in records(grid, options.runs).items():
        accuracy = record["networks"]["distilled student"][SPLIT]["accuracy"]
        masks = masks_of(options.runs / "cells" / cell.key / "run")
        found.setdefault((cell.task, cell.target, cell.method), []).append(
            {"seed": cell.seed, "accuracy": accuracy, "masks": masks, "seconds": record["seconds"]}
        )
    rows = {key: row(cells) for key, cells in found.items()}
    content = [
        {"task": key[0], "target": key[1], "objective": key[2], **rows[key], "runs": found[key]} for key in found
    ]
    write_text(options.out, json.dumps(content, indent=1))
    print("\n".join(lines(rows)))


if __name__ == "__main__":
    main()
