"""A copy of a stage's module, for engines that change a module for good; the module itself is set aside meanwhile."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
