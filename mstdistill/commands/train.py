"""`mstdistill train`: a student, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings.arguments import Overrides, Preset, Recipe


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="run folder; the same one continues a run")] = None,
    preset: Preset = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete what the run folder holds and start anew")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")] = False,
) -> None:
    """Train a student: co-train teachers, specialise them, distil, compare.

    Examples:

      mstdistill train av-digits

      mstdistill train av-digits target=audio distill.epochs=20 routing.rule=soft --out runs/soft

      mstdistill train av-mnist data.dir=data/av-mnist --preset released
    """
    from .. import config

    resolved = config.load(recipe, overrides or [], preset or [])
    if dry_run:
        typer.echo(config.dump(resolved), nl=False)
        return
    from .. import refusals

    refusals.recipe(resolved)
    from ..pipeline import train as run

    folder = out or Path("runs") / f"{resolved.task}-{resolved.target}-{resolved.method}-seed{resolved.seed}"
    run(resolved, folder, fresh=fresh)
