"""`mstdistill check`: data looked over before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    data: Annotated[str, typer.Argument(help="a prepared folder, a `datasets` folder, a file, or hub:org/name")],
    label: Annotated[str, typer.Option(help="the column of the classes")] = "label",
    rows: Annotated[int | None, typer.Option(min=1, help="look at this many of each split; none: at all")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="a column to look at, or modality=column; may be repeated; none: every usable one"),
    ] = None,
    max_broken: Annotated[float, typer.Option(min=0, max=1, help="share of instances that may be unreadable")] = 0.02,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="instances may lack a modality, as with data.missing=allow")
    ] = False,
    multilabel: Annotated[bool, typer.Option(help="an instance may have several classes at once")] = False,
    label_column: Annotated[
        list[str] | None, typer.Option(help="multi-label: a column of 0s and 1s, a class; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures there as JSON")] = None,
) -> None:
    """Look a data set over: shapes, ranges, missing and broken values, classes; exit code 2 if it can't be trained on.

    Examples:

      mstdistill check data/my-task --label species

      mstdistill check data/my-task --column photo --column text=caption --max-broken 0.1

      mstdistill check hub:org/name --rows 1000 --out figures.json
    """
    from .. import refusals

    refusals.data(data)
    from ..data.check.look import check as look_over
    from ..data.check.tables import report_tables
    from ..engine.progress import Screen

    pairs = [one.partition("=") for one in column or ()]
    columns = {modality: name or modality for modality, _, name in pairs} or None
    found = look_over(data, label, rows=rows, columns=columns, max_broken=max_broken,
                      missing="allow" if allow_missing else "refuse",
                      multilabel=multilabel, label_columns=label_column)  # fmt: skip
    screen = Screen()
    for part in report_tables(found):
        screen.say(part)
    if out is not None:
        found.save(out)
        screen.say(f"figures: {out}")
    if not found.usable:
        raise typer.Exit(2)
