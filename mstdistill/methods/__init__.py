"""Methods: ways to train a student, one file each with `run(experiment) -> Outcome`; a method knows no task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, nearest
from . import mst

METHODS: dict[str, Callable[..., Any]] = {"mst": mst.run}


def find_method(name: str) -> Callable[..., Any]:
    """A method by name.

    Raises:
        ConfigError: unknown; the message lists the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
