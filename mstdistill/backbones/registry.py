"""How a network gets its name: a constructor, and what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


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


REGISTERED: dict[str, Backbone] = {}


def register(
    name: str, inputs: tuple[tuple[int, ...], ...], about: str
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a network known by name.

    Args:
        name: for recipes.
        inputs: example shapes without batch, one a modality.
    """

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        REGISTERED[name] = Backbone(cls, inputs, about)
        return cls

    return add
