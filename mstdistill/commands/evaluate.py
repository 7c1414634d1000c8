"""`mstdistill evaluate`: a finished run's student on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, nearest


def evaluate(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
) -> None:
    """Print a finished run's student and teachers on a split, from their saved weights.

    Example: mstdistill evaluate runs/av-digits-image-mst-seed0 --split test
    """
    import json

    from rich.table import Table

    from .. import refusals

    if split not in ("train", "validation", "test"):
        raise ConfigError(f"split {split!r}: {nearest(split, ('train', 'validation', 'test'))}")
    refusals.unfinished(run)
    from ..engine.progress import Screen
    from ..files import write_text
    from ..pipeline import load_experiment
    from ..student import Student

    screen = Screen()
    experiment, _ = load_experiment(run, screen)
    student = Student.from_pretrained(run / "student").to(experiment.accelerator.device)
    result = experiment.evaluate(student.module, (experiment.target,), split)
    title, per_class = result.metrics.per_class
    figures = {**result.as_dict(), title: list(per_class), "absent": list(result.metrics.absent)}
    table = Table(title=f"{run}: distilled student on {split}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.as_dict().items():
        table.add_row(name, f"{value:.4f}")
    names = experiment.task.class_names or tuple(str(c) for c in range(experiment.task.num_classes))
    for name, value in zip(names, per_class, strict=False):
        table.add_row(f"{title.replace('_', ' ')} of class {name}", f"{value:.4f}")
    screen.say(table)
    path = run / f"evaluation-{split}.json"
    write_text(path, json.dumps(figures, indent=1))
    screen.say(f"figures: {path}")
