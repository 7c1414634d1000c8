"""Backbones by name: a constructor, and what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError, nearest


@dataclass(frozen=True)
class Backbone:
    """A registered network.

    Attributes:
        build: constructor; takes `num_classes` and its own options.
        inputs: shapes it takes (without batch), in order.
        about: one line.
    """

    build: Callable[..., nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    about: str


_BACKBONES: dict[str, Backbone] = {}


def register(
    name: str, inputs: tuple[tuple[int, ...], ...], about: str
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a network known by name.

    Args:
        name: for recipes.
        inputs: example shapes without batch, one a modality.
    """

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        _BACKBONES[name] = Backbone(cls, inputs, about)
        return cls

    return add


def backbones() -> dict[str, Backbone]:
    """Every registered network; the shipped ones are loaded on the first call."""
    from . import audio_cnn, audio_visual, audio_visual_features, digits, dual_stream, fusenet, lenet, mlp  # noqa: F401

    return _BACKBONES


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
