"""FSDP2: weights, gradients and the optimiser's state lie in shards (DTensors), gathered layer by layer where needed.

The stage keeps its own module; a copy of it is sharded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config import OptimSettings
from ..state import is_extra, load_extra, state_of
from .checkpoint import optimizer_tensors, restore_optimizer
from .joined import State
from .twin import TwinJoined


class FullyShardedJoined(TwinJoined):
    """A copy of the stage's module under FSDP2; see `Joined`.

    A unit gathers its weights for the backward pass when a gradient reaches its output. A module whose loss is of
    features inside of it (`reads_inside`) keeps them from the forward pass on.
    """

    def __init__(self, accelerator: Any, module: nn.Module, settings: OptimSettings) -> None:
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        super().__init__(accelerator, module, settings, adapt=lambda twin: cut_at_blocks(plugin, twin))
        self.inner = self.accelerator.unwrap_model(self.module)
        if getattr(self.inner, "reads_inside", False):
            for unit in self.inner.modules():
                if isinstance(unit, FSDPModule):
                    unit.set_reshard_after_forward(False, recurse=False)

    def weights(self) -> State:
        return {name: _whole(x) for name, x in state_of(self.inner).items()}

    def moments(self) -> tuple[State, list[dict[str, Any]]]:
        tensors, groups = optimizer_tensors(self.plain)
        return {name: _whole(x) for name, x in tensors.items()}, groups

    @torch.no_grad()
    def restore(self, weights: State, moments: State, groups: Sequence[Mapping[str, Any]]) -> None:
        for name, own in self.inner.state_dict().items():
            if not is_extra(name):
                own.copy_(_like(weights[name], own))
        load_extra(self.inner, weights)
        learning = [p for group in self.plain.param_groups for p in group["params"]]
        parts = {}
        for name, value in moments.items():
            number, key = name.split(".", 1)
            parts[name] = _like(value, learning[int(number)]) if key != "step" else value
        restore_optimizer(self.plain, parts, [dict(group) for group in groups])


def cut_at_blocks(plugin: Any, module: nn.Module) -> None:
    """Have Accelerate shard a stage's module in the units that its networks name (`_no_split_modules` of transformers);
    classes that the launch config names (`fsdp_transformer_layer_cls_to_wrap`) go first. None: one unit.

    Args:
        plugin: Accelerate's, which keeps what it found in the module of the stage before.
    """
    blocks = blocks_of(module)
    module._no_split_modules = blocks  # type: ignore[assignment]
    policy = getattr(plugin, "auto_wrap_policy", None)
    if getattr(policy, "func", policy) is not transformer_auto_wrap_policy:
        return
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    if "FSDP_TRANSFORMER_CLS_TO_WRAP" not in os.environ:
        plugin.transformer_cls_names_to_wrap = blocks


def blocks_of(module: nn.Module) -> list[str]:
    """Classes of the blocks that a module's networks name as units, of those that it holds."""
    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return sorted(named & {type(part).__name__ for part in module.modules()})


def _whole(x: Tensor) -> Tensor:
    """A tensor with all its shards, on the CPU; every process takes part."""
    x = x.detach()
    whole: Tensor = x.full_tensor() if isinstance(x, DTensor) else x
    return whole.to("cpu", copy=True)


def _like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor in the shards of another."""
    value = value.to(own.device)
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value, own.device_mesh, own.placements)
