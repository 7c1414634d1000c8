"""Commands about settings: `settings`, `new`, `completion`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import complete


def settings(
    word: Annotated[
        str | None,
        typer.Argument(help="only those with it in key, description or values", autocompletion=complete.keys),
    ] = None,
    json_form: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="as docs/settings.md")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="the JSON schema of recipes, for editors")] = False,
) -> None:
    """List settings: keys, values, defaults, what they are, which recipes change them.

    Examples:

      mstdistill settings epochs

      mstdistill settings distill.weights --json

      mstdistill settings --schema > recipe.schema.json
    """
    if json_form + markdown + schema > 1:
        raise ConfigError("give one of --json, --markdown and --schema")
    if schema:
        if word is not None:
            raise ConfigError(f"--schema is of the whole recipe; leave {word!r} out")
        from .schema import schema_text

        typer.echo(schema_text(), nl=False)
        return
    from . import show

    found = show.find(word)
    if json_form:
        typer.echo(show.as_json(found))
    elif markdown:
        typer.echo(show.markdown(found), nl=False)
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        typer.echo("\n".join(show.lines(found, width)))


def new(
    name: Annotated[str, typer.Argument(help="of the recipe: NAME.yaml is written", show_default=False)],
    task: Annotated[
        str, typer.Option(help="a task (see: mstdistill tasks); own: your own data", autocompletion=complete.tasks)
    ] = "own",
    target: Annotated[str | None, typer.Option(help="the modality that the student sees; none: the first")] = None,
    data: Annotated[str | None, typer.Option(help="a folder, a file or hub:org/name")] = None,
    label: Annotated[str | None, typer.Option(help="own: the column of the classes; none: label")] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="own: NAME or NAME=COLUMN; may be repeated; none: image and text")
    ] = None,
) -> None:
    """Write a recipe to start from: every setting with what it means, those at their default commented out.

    Examples:

      mstdistill new mine --task av-digits --target audio

      mstdistill new birds --data data/birds --label species --modality image=photo --modality audio=song
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(f"{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another name")
    from .start import UNNAMED, Start, recipe_text

    text = recipe_text(Start(task, target, data, label, modality or ()).recipe(), str(path))
    from ..files import write_text

    write_text(path, text)
    typer.echo(f"{path}: look it over, then: mstdistill train {path}")
    if UNNAMED in text:
        typer.echo(f"it names no model where it says {UNNAMED}: put a hub id or a folder there")


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish", autocompletion=complete.shells)],
) -> None:
    """Print what makes a shell complete recipes, keys and values.

    Examples:

      eval "$(mstdistill completion bash)"                    in ~/.bashrc

      eval "$(mstdistill completion zsh)"                     in ~/.zshrc, after compinit

      mstdistill completion fish > ~/.config/fish/completions/mstdistill.fish
    """
    typer.echo(complete.script(shell), nl=False)
