"""Backbones by name. A new one is a new file here: every file of this folder is looked into."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

from ..errors import ConfigError, nearest
from .registry import REGISTERED, Backbone


def backbones() -> dict[str, Backbone]:
    """Every registered network; the shipped ones are loaded on the first call."""
    _load()
    return REGISTERED


@cache
def _load() -> None:
    here = import_module(str(__package__))
    for found in sorted(iter_modules(here.__path__), key=lambda found: found.name):
        import_module(f"{here.__name__}.{found.name}")


def build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A network, newly initialised from torch's global generator.

    Raises:
        ConfigError: unknown name or option.
    """
    known = backbones()
    if name not in known:
        raise ConfigError(f"unknown backbone {name!r}; {nearest(name, known)}")
    try:
        return known[name].build(num_classes=num_classes, **options)
    except TypeError as error:
        raise ConfigError(f"backbone {name!r}: {error}") from None
