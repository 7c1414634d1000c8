"""What a task asks of logits: its loss with the labels, and how far one network's logits are from another's.

One class an instance (or a pixel): cross entropy, and KL divergence of softmax distributions. Several classes at once
(`several`): each is a yes or no of its own; binary cross entropy, and divergences of Bernoulli distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .data.feeding.batch import Batch
from .data.task import Task
from .errors import ConfigError
from .kernels import bernoulli_kd_rows, kd_rows
from .kernels.bernoulli import entries
from .sections.task_loss import TaskLossSettings


@dataclass(frozen=True)
class Objective:
    """A task's losses.

    Attributes:
        several: whether an instance has several classes at once; labels are then [B, C]: 0, 1, or -1 for not known.
        ignore: a class that doesn't count.
        class_weights: [C] what an instance of each class counts in the task's loss, or for several [2, C] what each
            class's no and yes count; None: 1. They are 1 in the mean over the data, so that a mean needs no other
            divisor.
        smoothing: part of each label that goes to all classes evenly.
    """

    several: bool = False
    ignore: int | None = None
    class_weights: Tensor | None = None
    smoothing: float = 0.0

    @property
    def fused(self) -> bool:
        """Whether distillation's kernels have the task's loss in them."""
        return not self.smoothing

    def task(self, logits: Tensor, batch: Batch, seen: Tensor | None = None) -> Tensor:
        """The task's loss averaged over what is labelled in the global batch; an instance that isn't `seen` [B] adds
        nothing."""
        if not self.several and self.class_weights is None and not self.smoothing:
            return losses.task(logits, batch, self.ignore, seen)
        rows = losses.mixed_rows(self.sums(logits, batch.label), lambda label: self.sums(logits, label), batch)
        scaled = rows * self.scale(batch, rows.dtype, logits.dim() > 2)
        return (scaled if seen is None else scaled * seen).sum()

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """[B] the task's losses, summed over an instance's labelled pixels or known classes; weights and all."""
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if self.several:
            return entries(logits, label, self.class_weights).sum(dim=1)
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        rows = F.cross_entropy(logits, label, weight, ignore_index=losses.ignored(self.ignore), reduction="none",
                               label_smoothing=self.smoothing)  # fmt: skip
        return rows.flatten(1).sum(dim=1) if rows.dim() > 1 else rows

    def task_rows(self, logits: Tensor, label: Tensor) -> Tensor:
        """[B] the task's losses, an instance's mean over what is labelled of it; 0 where nothing is."""
        if not self.several and self.class_weights is None and not self.smoothing:
            return losses.task_rows(logits, label, self.ignore)
        rows = self.sums(logits, label)
        if label.dim() == 1:
            return rows
        return rows / (label != losses.ignored(self.ignore)).flatten(1).sum(dim=1).clamp(min=1)

    def scale(self, batch: Batch, dtype: torch.dtype, dense: bool) -> Tensor:
        """[B] what an instance's `sums` count in the mean over the global batch."""
        return losses.task_scale(batch, dtype, dense or self.several, self.ignore)

    def kernel_scale(self, scale: Tensor, label: Tensor) -> Tensor:
        """`scale` for kernels, which know no weights of classes where an instance has one."""
        if self.several or self.class_weights is None:
            return scale
        return scale * self.class_weights.to(scale)[label.clamp(min=0)]

    @property
    def kernel_weights(self) -> Tensor | None:
        """The weights of classes that kernels know."""
        return self.class_weights if self.several else None

    def kd_rows(self, learner: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """[B] KD(learner <- reference); for several classes the mean over them."""
        return (bernoulli_kd_rows if self.several else kd_rows)(learner, reference, temperature)

    def kd(
        self, learner: Tensor, reference: Tensor, batch: Batch, temperature: float, seen: Tensor | None = None
    ) -> Tensor:
        """`kd_rows` averaged over the global batch; an instance that isn't `seen` [B] by both adds nothing."""
        rows = self.kd_rows(learner, reference, temperature)
        return batch.mean(rows if seen is None else rows * seen)

    def moved(self, device: torch.device) -> Objective:
        """The same on a device."""
        weights = None if self.class_weights is None else self.class_weights.to(device)
        return Objective(self.several, self.ignore, weights, self.smoothing)


def plan_objective(
    settings: TaskLossSettings, sampler: str, task: Task, dense: bool, labels: Callable[[], np.ndarray],
    say: Callable[[str], None],
) -> tuple[Objective, np.ndarray | None]:  # fmt: skip
    """A task's losses as a recipe wants them, and the classes [N] that `data.sampler` draws by, if it does.

    Args:
        dense: labels are maps.
        labels: gives those of the training instances.

    Raises:
        ConfigError: weights or a balance of classes for labels that are maps, or what goes by an instance's one class
            for several.
    """
    weighs, draws = settings.class_weights == "balanced", sampler == "balanced"
    name = "task_loss.class_weights" if weighs else "data.sampler"
    if dense and (weighs or draws):
        raise ConfigError(f"{name}=balanced: a map's pixels have many classes; it goes by an instance's")
    if task.multilabel and (draws or settings.label_smoothing):
        name = "data.sampler=balanced" if draws else f"task_loss.label_smoothing={settings.label_smoothing:g}"
        raise ConfigError(f"{name}: it goes by an instance's one class, and this is a multi-label task")
    label = labels() if weighs or draws else None
    weights = None if label is None or not weighs else balanced(label, task.num_classes)
    if weights is not None:
        say(described(weights, dict(enumerate(task.class_names))))
    found = Objective(task.multilabel, task.ignore_index, weights, settings.label_smoothing)
    return found, label if draws else None


def balanced(label: np.ndarray, num_classes: int) -> Tensor:
    """Weights by which every class counts the same in the mean over labelled instances.

    Args:
        label: [N] classes, or [N, C] of 0 and 1; below 0: none.

    Returns:
        [C], or for [N, C] labels [2, C]: each class's yes and no count the same. A class that nobody has counts 1.
    """
    if label.ndim == 1:
        counts = np.bincount(label[label >= 0], minlength=num_classes)
        present = counts > 0
        found = np.where(present, counts.sum() / (max(1, present.sum()) * np.maximum(counts, 1)), 1.0)
    else:
        both = np.stack([(label == 0).sum(axis=0), (label == 1).sum(axis=0)])
        found = np.where(both.min(axis=0) > 0, both.sum(axis=0) / (2 * np.maximum(both, 1)), 1.0)
    return torch.from_numpy(found.astype(np.float32))


def described(weights: Tensor, names: Mapping[int, str] | None = None) -> str:
    """A line for people: which class counts least and most."""
    yes = weights if weights.dim() == 1 else weights[1]
    low, high = int(yes.argmin()), int(yes.argmax())
    names = names or {}
    called: Any = [names.get(number, str(number)) for number in (low, high)]
    return f"class weights: {float(yes[low]):.3g} ({called[0]}) to {float(yes[high]):.3g} ({called[1]})"
