"""Methods: ways to train a student, one file each with `run(experiment) -> Outcome`; a method knows no task."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, nearest

if TYPE_CHECKING:
    from .baseline import Baseline

BASELINES = ("alone", "average", "c2kd", "crd", "dist", "dkd", "fitnets", "kd", "mgdfr", "mlld", "ofa", "pseudo", "rkd")


def _when_called(name: str) -> Callable[..., Any]:
    """The `run` of `methods/NAME.py`, imported when it is called."""

    def run(experiment: Any) -> Any:
        return import_module(f".{name}", __name__).run(experiment)

    return run


METHODS: dict[str, Callable[..., Any]] = {name: _when_called(name) for name in ("mst", *BASELINES)}


def find_baseline(name: str) -> type[Baseline] | None:
    """The class of a method of the comparison; None for mst."""
    if name not in BASELINES:
        return None
    content = vars(import_module(f".{name}", __name__)).values()
    found: type[Baseline] = next(x for x in content if isinstance(x, type) and getattr(x, "name", None) == name)
    return found


def find_method(name: str) -> Callable[..., Any]:
    """A method by name.

    Raises:
        ConfigError: unknown; the message lists the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
