"""Temperatures that make networks' probabilities honest, from data that none of them has learnt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from . import ranks
from .certainty import calibrated, calibration_losses
from .data.feeding.batch import Batch
from .data.feeding.loader import Loader


@torch.no_grad()
def temperatures(
    logits: Callable[[Batch], Tensor],
    loader: Loader,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    seen: Callable[[Batch], Tensor | None] = lambda batch: None,
) -> list[float]:
    """At which each network's cross entropy is least over all processes' instances (Guo et al. 2017).

    Args:
        logits: from a batch on the device to [B, M, C].
        seen: from a batch to which networks see an instance [B, M]; None: all.
    """
    sums = torch.zeros((), device=device)
    for batch in loader.epoch():
        batch = batch.to(device)
        with autocast():
            found = logits(batch)
        sums = sums + calibration_losses(found, batch.label, batch.weight, seen(batch))
    result: list[float] = calibrated(ranks.total(sums)).tolist()
    return result
