"""How well a network does on a split: loss and confusion matrix over all ranks, each instance counted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ranks
from .data.feeding.batch import Batch
from .data.feeding.loader import Loader
from .metrics import Metrics, accuracy_of, confusion, metrics_of


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network on a split.

    Attributes:
        loss: cross entropy, averaged as asked.
        matrix: confusion matrix [C, C].
        ignore_index: the label that doesn't count.
    """

    loss: float
    matrix: Tensor
    ignore_index: int | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """All of `mstdistill.metrics`, when asked for: they take longer than a small validation."""
        return metrics_of(self.matrix, self.ignore_index)

    @property
    def accuracy(self) -> float:
        """Overall accuracy, the one figure that every epoch wants."""
        return accuracy_of(self.matrix, self.ignore_index)

    def as_dict(self) -> dict[str, float]:
        """Loss and scalar metrics by name."""
        return {"loss": self.loss, **self.metrics.as_dict()}


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Batch], Tensor],
    loader: Loader,
    device: torch.device,
    *,
    mean: str = "instances",
    autocast: Callable[[], Any] | None = None,
    sees: Callable[[Batch], Tensor | None] | None = None,
) -> Evaluation:
    """Evaluate a network in eval mode.

    Args:
        logits_of: from a batch on the device to logits [B, C] or [B, C, H, W].
        loader: names the classes and the ignored label.
        mean: "instances", or "batches" for the mean of the batch means (quirk 7).
        sees: from a batch to the instances [B] that the network can see, where some lack a modality; others don't
            count.
    """
    num_classes, ignore = loader.num_classes, loader.ignore_index
    assert num_classes is not None
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    batches: list[Tensor] = []
    for batch in loader.epoch():
        batch = batch.to(device)
        there = sees(batch) if sees is not None and batch.present else None
        if there is not None:
            batch = replace(batch, weight=batch.weight * there)
        if autocast is None:
            logits = logits_of(batch)
        else:
            with autocast():
                logits = logits_of(batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        batches.append(_loss_and_count(logits, batch, ignore))
        matrix += confusion(logits, batch.label, num_classes, ignore, batch.weight)
    sums = ranks.total(torch.stack(batches))
    matrix = ranks.total(matrix).cpu()
    if mean == "batches":
        loss = (sums[:, 0] / sums[:, 1].clamp(min=1)).mean()
    else:
        loss = sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1)
    return Evaluation(float(loss), matrix, ignore)


def _loss_and_count(logits: Tensor, batch: Batch, ignore: int | None) -> Tensor:
    """[2]: sum of the cross entropies of this rank's labelled instances (or pixels), and how many there are."""
    ignore = -100 if ignore is None else ignore
    losses = F.cross_entropy(logits, batch.label, ignore_index=ignore, reduction="none").to(torch.float64)
    weight = batch.weight.to(torch.float64).view(-1, *(1,) * (losses.dim() - 1))
    return torch.stack([(losses * weight).sum(), ((batch.label != ignore) * weight).sum()])
