"""`mstdistill logits`: what a network says of all data, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings.arguments import Overrides


def logits(
    source: Annotated[Path, typer.Argument(help="the folder of a finished run, or of an exported student")],
    recipe: Annotated[str | None, typer.Argument(help="whose data an exported student looks at")] = None,
    overrides: Overrides = None,
    network: Annotated[str, typer.Option(help="student, or a teacher of the run by its name")] = "student",
    out: Annotated[Path, typer.Option(help="file to write, .safetensors; .npz: with keys")] = Path(
        "logits.safetensors"
    ),
    top: Annotated[int | None, typer.Option(min=1, help="keep so many classes of a row; none: all")] = None,
) -> None:
    """Write a network's logits on all splits: a file that other runs take for a teacher.

    Examples:

      mstdistill logits runs/large --network both --out both.safetensors

      mstdistill logits runs/large/student my-recipe.yaml data.dir=data/mine --top 20 --out large.safetensors

      accelerate launch -m mstdistill logits runs/large --network both data.key=file --out both.npz
    """
    from .. import refusals

    if not (source / "model.safetensors").exists():
        refusals.unfinished(source, "summary.json")
    from ..write_logits import write

    write(source, network, recipe, overrides or [], out, top)
