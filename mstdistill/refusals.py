"""What needs no tensor to be refused: said before torch is loaded, in the words that the run itself would use."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .config import Recipe
from .data.sources.opening import HUB
from .errors import ConfigError, DataError, nearest
from .export.names import Kind, check_request
from .methods import find_method
from .shipped import shipped


def recipe(resolved: Recipe) -> None:
    """Names of a recipe that nothing has.

    Raises:
        ConfigError: its task, its method, its target, or a backbone.
    """
    task = shipped().task(resolved.task)
    find_method(resolved.method)
    if task.modalities and resolved.target not in task.modalities:  # a user's own data tell theirs when they are opened
        raise ConfigError(
            f"target {resolved.target!r}: {task.name} has no such modality; {nearest(resolved.target, task.modalities)}"
        )
    networks = [resolved.pairing.student, *resolved.pairing.teachers] if resolved.models else []
    for network in networks:
        if network.backbone is not None:
            backbone(network.backbone)


def backbone(name: str) -> None:
    """A backbone that nobody registered.

    Raises:
        ConfigError: the message lists the nearest.
    """
    known = shipped().backbones
    if name not in known:
        raise ConfigError(f"unknown backbone {name!r}; {nearest(name, known)}")


def unfinished(run: Path, mark: str = "student/config.json") -> None:
    """A folder without a finished run.

    Raises:
        DataError: it has no `mark`.
    """
    if not (run / mark).exists():
        raise DataError(f"{run} holds no finished run; train it to its end first")


def demo(run: Path) -> None:
    """A demo of nothing, or without what it is made with.

    Raises:
        DataError: no finished run.
        ConfigError: the extra isn't installed.
    """
    unfinished(run, "summary.json")
    unfinished(run)
    if find_spec("gradio") is None:
        raise ConfigError("mstdistill demo needs gradio, an extra: pip install 'mstdistill[demo]'")


def data(location: str) -> None:
    """Data that aren't there.

    Raises:
        DataError: neither a folder nor a file has that name.
    """
    if not location.startswith(HUB) and not Path(location).expanduser().exists():
        raise DataError(f"there is no {location}; data are a folder, a file or hub:org/name")


def artefacts(run: Path, out: Path, formats: list[str], quantise: list[str], calibrate: int, rows: int | None
              ) -> list[Kind]:  # fmt: skip
    """What a run's student can't be exported as.

    Raises:
        DataError: no finished run.
        ConfigError: see `check_request`.
    """
    unfinished(run)
    return check_request(out, formats, quantise, calibrate, rows)
