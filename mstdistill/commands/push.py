"""`mstdistill push`: a run's student into a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError


def push(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run, or of an exported student")],
    repository: Annotated[str, typer.Argument(help="org/name; made where there is none")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="of a new repository; none: as its owner's settings say")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="a branch, made where there is none; none: main")] = None,
    license: Annotated[
        str | None, typer.Option(help="as the Hub writes it: mit, cc-by-4.0, ...; none: other")
    ] = None,
) -> None:  # fmt: skip
    """Put a run's student on the Hugging Face Hub: weights, config and a card with its figures.

    The token is HF_TOKEN, or that of `hf auth login`; it is neither shown nor kept.

    Examples:

      mstdistill push runs/av-digits-image-mst-seed0 org/name --license mit

      mstdistill push my-student org/name --revision int8 --private
    """
    from ..repository import check_name, publish

    folder = _student_of(run)
    check_name(repository)
    from ..card import make_card, published
    from ..engine.progress import Screen

    card = folder / "README.md"
    text = card.read_text() if card.exists() else make_card(json.loads((folder / "config.json").read_text()))
    address = publish(folder, published(text, repository, license), repository, private, revision=revision)
    at = f', revision="{revision}"' if revision else ""
    screen = Screen()
    screen.say(f"{run}: {address}")
    screen.say(f'from mstdistill import Student\nstudent = Student.from_pretrained("{repository}"{at})')


def _student_of(run: Path) -> Path:
    """Where a student lies, in a run's folder or by itself.

    Raises:
        DataError: nowhere, or without weights.
    """
    folder = run / "student" if (run / "student").is_dir() else run
    if not (folder / "config.json").is_file():
        raise DataError(f"{run} holds no finished run and no exported student; train one to its end first")
    if not any(folder.glob("model*.safetensors")):
        raise DataError(f"{folder} holds no weights to load again; export them too: --format safetensors,onnx")
    return folder
