"""A copy of a stage's module, for engines that change a module for good; the module itself is set aside meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..config import OptimSettings
from .joined import Joined


class TwinJoined(Joined):
    """A copy of the stage's module joined in its place; the module's own parameters wait on the CPU until `close`.

    Args:
        adapt: what the copy needs before it is joined.
    """

    def __init__(
        self, accelerator: Any, module: nn.Module, settings: OptimSettings, adapt: Callable[[nn.Module], None]
    ) -> None:
        twin = twin_of(module)
        adapt(twin)
        super().__init__(accelerator, twin, settings)
        self.original, self.home = module, set_aside(module)

    def close(self) -> None:
        super().close()
        bring_back(self.original, self.home)


def twin_of(module: nn.Module) -> nn.Module:
    """A copy of a module.

    Buffers that every process computes alike (`shared_buffers`, see `methods.crd`) stay the same tensors: losses write
    to them.
    """
    memo = {
        id(buffer): buffer
        for owner in module.modules()
        for name in getattr(owner, "shared_buffers", ())
        for buffer in [owner.get_buffer(name)]
    }
    return copy.deepcopy(module, memo)


def set_aside(module: nn.Module) -> torch.device | None:
    """Take a module's parameters to the CPU; where they were."""
    device = next((p.device for p in module.parameters()), None)
    _move(module, torch.device("cpu"))
    return device


def bring_back(module: nn.Module, device: torch.device | None) -> None:
    """Undo `set_aside`."""
    if device is not None:
        _move(module, device)


def _move(module: nn.Module, device: torch.device) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device)
