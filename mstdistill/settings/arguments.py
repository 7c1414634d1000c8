"""Arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from . import complete

Recipe = Annotated[
    str,
    typer.Argument(
        help="a shipped recipe (see: mstdistill tasks) or a YAML file (see: mstdistill new)",
        autocompletion=complete.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings, as key=value; all of them: mstdistill settings", autocompletion=complete.overrides),
]
Preset = Annotated[
    list[str] | None, typer.Option(help="'released': the paper's released settings", autocompletion=complete.presets)
]
