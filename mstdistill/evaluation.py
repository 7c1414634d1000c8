"""How well a network does on a split: loss and confusion matrix (or all logits) over all ranks, each instance once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import ranks
from .data.feeding.batch import Batch
from .data.feeding.loader import Loader
from .data.source import UNLABELLED
from .kernels.bernoulli import entries
from .metrics import (
    Metrics,
    SeveralMetrics,
    accuracy_of,
    average_precisions,
    confusion,
    metrics_of,
    several_metrics_of,
)


class Evaluated(Protocol):
    """Figures of a network on a split.

    Attributes:
        loss: the task's loss, averaged as asked.
        measure: the name of the one figure that every epoch wants.
        score: that figure; nan without a label.
        selection: by which an epoch's weights are kept; the lowest.
        titled: the figure in words.
        near_chance: in words why it is hardly better than guessing, or an empty string.
    """

    @property
    def loss(self) -> float: ...

    @property
    def measure(self) -> str: ...

    @property
    def score(self) -> float: ...

    @property
    def selection(self) -> float: ...

    @property
    def titled(self) -> str: ...

    @property
    def near_chance(self) -> str: ...

    @property
    def metrics(self) -> Metrics | SeveralMetrics: ...

    def as_dict(self) -> dict[str, float]:
        """Loss and scalar metrics by name."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network on a split; see `Evaluated`.

    Attributes:
        loss: cross entropy, averaged as asked.
        matrix: confusion matrix [C, C].
        ignore_index: the label that doesn't count.
    """

    loss: float
    matrix: Tensor
    ignore_index: int | None = None
    measure: ClassVar[str] = "accuracy"

    @cached_property
    def metrics(self) -> Metrics:
        """All of `mstdistill.metrics`, when asked for: they take longer than a small validation."""
        return metrics_of(self.matrix, self.ignore_index)

    @property
    def accuracy(self) -> float:
        """Overall accuracy, the one figure that every epoch wants."""
        return accuracy_of(self.matrix, self.ignore_index)

    @property
    def score(self) -> float:
        """See `Evaluated`."""
        return self.accuracy

    @property
    def selection(self) -> float:
        """See `Evaluated`."""
        return self.loss

    @property
    def titled(self) -> str:
        """See `Evaluated`."""
        return f"accuracy {self.accuracy:.3f}"

    @property
    def near_chance(self) -> str:
        """See `Evaluated`."""
        chance = 1.0 / len(self.matrix)
        if self.accuracy < 1.5 * chance or self.loss > 0.95 * math.log(len(self.matrix)):
            return f"accuracy {self.accuracy:.3f}, chance {chance:.3f}"
        return ""

    def as_dict(self) -> dict[str, float]:
        """Loss and scalar metrics by name."""
        return {"loss": self.loss, **self.metrics.as_dict()}


@dataclass(frozen=True)
class SeveralEvaluation:
    """Figures of a network of several classes at once on a split; see `Evaluated`.

    Attributes:
        loss: binary cross entropy over the known entries, averaged as asked.
        logits, label: [N, C] of all instances.
    """

    loss: float
    logits: Tensor
    label: Tensor
    measure: ClassVar[str] = "map_macro"

    @cached_property
    def metrics(self) -> SeveralMetrics:
        """All of them, when asked for."""
        return several_metrics_of(self.logits, self.label)

    @cached_property
    def score(self) -> float:
        """The mean average precision over the classes."""
        found = average_precisions(self.logits, self.label)
        return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")

    @property
    def selection(self) -> float:
        """See `Evaluated`."""
        return 1.0 - self.score if math.isfinite(self.score) else self.loss

    @property
    def titled(self) -> str:
        """See `Evaluated`."""
        return f"mAP {self.score:.3f}"

    @property
    def near_chance(self) -> str:
        """See `Evaluated`."""
        area = self.metrics.auroc
        return f"AUROC {area:.3f}, chance 0.500" if area < 0.55 else ""

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
) -> Evaluated:
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
    several = loader.labels.kind == "several"
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
    rows: list[tuple[Tensor, Tensor]] = []
    batches: list[Tensor] = []
    for batch in loader.epoch():
        batch = batch.to(device)
        there = sees(batch) if sees is not None and batch.present else None
        if there is not None:
            batch = replace(batch, weight=batch.weight * there)
            if several:  # whose figures are of all logits
                batch.label = batch.label.masked_fill(~there.unsqueeze(1), UNLABELLED)
        if autocast is None:
            logits = logits_of(batch)
        else:
            with autocast():
                logits = logits_of(batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        batches.append(_loss_and_count(logits, batch, ignore))
        if several:
            count = round(batch.instances)
            rows.append((ranks.rows_of_all(logits, count).cpu(), ranks.rows_of_all(batch.label, count).cpu()))
        else:
            matrix += confusion(logits, batch.label, num_classes, ignore, batch.weight)
    sums = ranks.total(torch.stack(batches))
    matrix = ranks.total(matrix).cpu()
    if mean == "batches":
        loss = (sums[:, 0] / sums[:, 1].clamp(min=1)).mean()
    else:
        loss = sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1)
    if several:
        return SeveralEvaluation(float(loss), torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    return Evaluation(float(loss), matrix, ignore)


def _loss_and_count(logits: Tensor, batch: Batch, ignore: int | None) -> Tensor:
    """[2]: sum of the cross entropies of this rank's labelled instances (or pixels, or classes), and how many there
    are."""
    if batch.label.dim() == 2:
        weight = batch.weight.to(torch.float64).unsqueeze(1)
        return torch.stack([(entries(logits, batch.label) * weight).sum(), ((batch.label >= 0) * weight).sum()])
    ignore = -100 if ignore is None else ignore
    losses = F.cross_entropy(logits, batch.label, ignore_index=ignore, reduction="none").to(torch.float64)
    weight = batch.weight.to(torch.float64).view(-1, *(1,) * (losses.dim() - 1))
    return torch.stack([(losses * weight).sum(), ((batch.label != ignore) * weight).sum()])
