"""A stage's optimiser, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimSettings


def learning_rate(settings: OptimSettings, step: int, total: int) -> float:
    """The learning rate of an optimiser step (from 0) out of `total`."""
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "cosine":
        done = max(0, step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        return settings.lr * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return settings.lr * warm


def build_optimizer(settings: OptimSettings, module: nn.Module, recorded: bool = False) -> torch.optim.Optimizer:
    """The stage's optimiser over the parameters that learn, in one pass; fit for a graph if `recorded`."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = bool(parameters) and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, weight_decay=settings.weight_decay, fused=fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    # a replayed step reads its learning rate from memory
    rate: Any = torch.tensor(settings.lr, device=parameters[0].device) if recorded else settings.lr
    return kind(parameters, rate, weight_decay=settings.weight_decay, fused=fused, capturable=recorded and fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
