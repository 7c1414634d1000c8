"""`mstdistill import`: weights of the authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings import complete


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="a state dict saved by torch")],
    backbone: Annotated[
        str, typer.Option(help="whose weights these are (see: mstdistill tasks)", autocompletion=complete.backbones)
    ],
    out: Annotated[Path, typer.Option(help="where they go: a new .safetensors file")],
    num_classes: Annotated[int | None, typer.Option(min=1, help="none: as many as the weights have")] = None,
    option: Annotated[list[str] | None, typer.Option(help="of the backbone, as key=value; may be repeated")] = None,
    bgr: Annotated[
        bool, typer.Option("--bgr", help="it was trained on pictures in BGR order (the authors' RAVDESS): turn its "
                           "first layer to RGB, which this project's pictures have")
    ] = False,
) -> None:  # fmt: skip
    """Check a checkpoint of the authors' code against a backbone and keep it as safetensors; runs no code of the file.

    Example: mstdistill import CNN-I.pth --backbone CNN-I --out weights/CNN-I.safetensors
    """
    from .. import refusals

    refusals.backbone(backbone)
    from ..engine.progress import Screen
    from ..importing import import_state_dict, parse_options

    found = import_state_dict(checkpoint, backbone, num_classes, parse_options(option or []), out, bgr)
    turned = ", its first layer turned from BGR to RGB" if bgr else ""
    Screen().say(f"{backbone}, {found.num_classes} classes: {found.tensors} tensors, {found.parameters:,} parameters"
                 f"{turned}; in a recipe:  weights: {out}")  # fmt: skip
