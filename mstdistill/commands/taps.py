"""`mstdistill taps`: where masks can sit in a network."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError
from ..settings import complete


def taps(
    model: Annotated[
        str | None, typer.Argument(help="a backbone's name (see: mstdistill tasks)", autocompletion=complete.backbones)
    ] = None,
    hf: Annotated[str | None, typer.Option(help="instead: a Hugging Face model, hub id or folder")] = None,
    num_classes: Annotated[int, typer.Option(min=2, help="of the heads that are new")] = 10,
    recipe: Annotated[bool, typer.Option("--recipe", help="also print lines for a recipe")] = False,
    heads: Annotated[int, typer.Option(help="heads of the mask's attention")] = 3,
    hidden_dim_factor: Annotated[int, typer.Option(help="hidden width = d // (factor * heads) * heads")] = 2,
) -> None:
    """List where masks can sit in a network: features with their shapes and what a mask costs there.

    Examples:

      mstdistill taps CNN-I

      mstdistill taps --hf google-bert/bert-base-uncased --recipe
    """
    from .. import refusals

    if (model is None) == (hf is None):
        raise ConfigError("name either a backbone or a Hugging Face model: mstdistill taps CNN-I, or taps --hf ID")
    if model is not None:
        refusals.backbone(model)
    from ..engine.progress import Screen
    from ..report.taps import of_backbone, of_huggingface, recipe_lines, taps_table

    network = of_backbone(model, num_classes) if model is not None else of_huggingface(str(hf), num_classes)
    screen = Screen()
    screen.say(taps_table(network, heads, hidden_dim_factor))
    if recipe:
        typer.echo(recipe_lines(network))
