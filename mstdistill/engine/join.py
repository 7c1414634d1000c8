"""From a launch to how a stage's module is joined over its processes."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import OptimSettings
from ..errors import ConfigError
from .joined import Joined


def join(accelerator: Any, module: nn.Module, settings: OptimSettings, recorded: bool, batch_size: int) -> Joined:
    """Join a stage's module over the processes as the launch asked.

    Args:
        batch_size: per process and micro-batch.

    Raises:
        ConfigError: an engine that can't do what the recipe wants.
    """
    kind = str(accelerator.distributed_type).rsplit(".", maxsplit=1)[-1]
    if kind == "DEEPSPEED":
        from .zero import ZeroJoined

        return ZeroJoined(accelerator, module, settings, batch_size)
    if kind == "FSDP":
        from .fully_sharded import FullyShardedJoined

        if not accelerator.is_fsdp2:
            raise ConfigError("FSDP of version 1 isn't supported; set fsdp_version: 2 (launch_configs/fsdp2.yaml)")
        return FullyShardedJoined(accelerator, module, settings)
    return Joined(accelerator, module, settings, recorded)
