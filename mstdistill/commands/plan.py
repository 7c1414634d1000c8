"""`mstdistill plan`: what a run will need, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings.arguments import Overrides, Preset, Recipe


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, b200, mi300x, l40s, ..., or cpu: this one")] = "h100",
    preset: Preset = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every figure there")] = None,
) -> None:
    """Predict memory, time and communication of each stage, and say how to launch it; needs neither data nor GPU.

    Examples:

      mstdistill plan av-mnist --gpus 8 --gpu h100

      mstdistill plan nyu-depth-v2 batch_size=12 precision=bf16 --gpus 8 --nodes 2 --gpu a100-40 --json plan.json
    """
    import json

    from .. import config, refusals

    resolved = config.load(recipe, overrides or [], preset or [])
    refusals.recipe(resolved)
    from ..engine.progress import Screen
    from ..files import write_text
    from ..planning.figures import figures_of
    from ..planning.plan import Request, make_plan
    from ..planning.show import shown

    figures = figures_of(make_plan(Request(resolved, gpu, gpus, nodes)), recipe, overrides or [], preset or [])
    screen = Screen()
    for part in shown(figures):
        screen.say(part)
    if json_file is not None:
        write_text(json_file, json.dumps(figures, indent=1))
        screen.say(f"figures: {json_file}")
