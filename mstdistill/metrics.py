"""Metrics of classification and segmentation, all from one confusion matrix, by scikit-learn; and of several classes at
once, from every instance's logits.

A confusion matrix adds up over batches and ranks without gathering predictions, so nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def confusion(
    logits: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = None, weight: Tensor | None = None
) -> Tensor:
    """Confusion matrix [C, C] float64, rows true, columns predicted.

    Args:
        logits: [B, C] or [B, C, H, W].
        label: [B] or [B, H, W].
        ignore_index: labels that don't count.
        weight: [B], 0 for padded instances.
    """
    return confusion_of(logits.argmax(dim=1), label, num_classes, ignore_index, weight)


def confusion_of(
    predicted: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = None, weight: Tensor | None = None
) -> Tensor:
    """As `confusion`, from predicted classes."""
    keep = (label >= 0) & (label < num_classes)
    if ignore_index is not None:
        keep &= label != ignore_index
    if weight is not None:
        keep &= (weight > 0).view(-1, *(1,) * (label.dim() - 1))
    cells = label[keep] * num_classes + predicted[keep]
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).to(torch.float64)


@dataclass(frozen=True)
class Metrics:
    """Figures of a confusion matrix.

    Attributes:
        accuracy: overall accuracy.
        average_accuracy: mean recall over the classes that occur (in labels or predictions).
        weighted_f1: F1 weighted by the classes' counts.
        kappa: Cohen's kappa.
        miou: mean intersection over union over the classes that occur.
        precision: per class; nan for a class that nobody predicted nor has.
        absent: classes without a sample and without a prediction.
    """

    accuracy: float
    average_accuracy: float
    weighted_f1: float
    kappa: float
    miou: float
    precision: tuple[float, ...]
    absent: tuple[int, ...]

    @property
    def per_class(self) -> tuple[str, tuple[float, ...]]:
        """What is told of each class, and its figures."""
        return "precision", self.precision

    def as_dict(self) -> dict[str, float]:
        """The scalar figures by name."""
        names = ("accuracy", "average_accuracy", "weighted_f1", "kappa", "miou")
        return {name: float(getattr(self, name)) for name in names}


def metrics_of(matrix: Tensor, ignore_index: int | None = None) -> Metrics:
    """Metrics of a confusion matrix [C, C].

    With an ignored class, its row and column are left out, as the released code does: a labelled pixel that is
    predicted as the ignored class counts for weighted F1 alone (as a miss). Such a model is rare, but its accuracy
    reads too high.
    """
    from sklearn import metrics as sk

    whole = matrix.cpu().numpy()
    classes = np.array([c for c in range(len(whole)) if c != ignore_index])
    counts = whole[np.ix_(classes, classes)]
    if counts.sum() == 0:
        nan = float("nan")
        return Metrics(nan, nan, nan, nan, nan, tuple(nan for _ in classes), tuple(int(c) for c in classes))
    true, predicted, weight = _cells(counts, classes)
    options = {"labels": classes, "sample_weight": weight, "average": None, "zero_division": 0}
    present, sampled = (counts.sum(0) + counts.sum(1)) > 0, counts.sum(1) > 0
    recall = sk.recall_score(true, predicted, **options)
    iou = sk.jaccard_score(true, predicted, **options)
    precision = np.where(present, sk.precision_score(true, predicted, **options), np.nan)
    all_true, all_predicted, all_weight = _cells(whole, np.arange(len(whole)))
    weighted_f1 = sk.f1_score(
        all_true, all_predicted, labels=classes, sample_weight=all_weight, average="weighted", zero_division=0
    )
    return Metrics(
        accuracy=float(sk.accuracy_score(true, predicted, sample_weight=weight)),
        average_accuracy=float(recall[sampled].mean()),
        weighted_f1=float(weighted_f1),
        kappa=float(sk.cohen_kappa_score(true, predicted, sample_weight=weight)),
        miou=float(iou[present].mean()),
        precision=tuple(float(x) for x in precision),
        absent=tuple(int(c) for c in classes[~present]),
    )


def accuracy_of(matrix: Tensor, ignore_index: int | None = None) -> float:
    """Overall accuracy alone, as `metrics_of` has it; nan without a label."""
    kept = [c for c in range(len(matrix)) if c != ignore_index]
    counts = matrix[kept][:, kept]
    return float(counts.diagonal().sum() / counts.sum())


def _cells(counts: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix as weighted (true, predicted) pairs, which scikit-learn reads."""
    rows, columns = np.nonzero(counts)
    return classes[rows], classes[columns], counts[rows, columns]


@dataclass(frozen=True)
class SeveralMetrics:
    """Figures of a task of several classes at once; entries that aren't known don't count.

    Attributes:
        map_macro, map_weighted: mean average precision over the classes that some instance has: plain, and weighted by
            how many have them.
        f1_micro, f1_macro: at probability 1/2, over all entries together, and the mean over the classes that occur (in
            labels or predictions).
        auroc: area under the ROC curve, the mean over the classes that some instances have and others don't.
        average_precision: per class; nan for one that nobody has.
        absent: classes that nobody has.
    """

    map_macro: float
    map_weighted: float
    f1_micro: float
    f1_macro: float
    auroc: float
    average_precision: tuple[float, ...]
    absent: tuple[int, ...]

    @property
    def per_class(self) -> tuple[str, tuple[float, ...]]:
        """What is told of each class, and its figures."""
        return "average_precision", self.average_precision

    def as_dict(self) -> dict[str, float]:
        """The scalar figures by name."""
        return {name: float(getattr(self, name)) for name in
                ("map_macro", "map_weighted", "f1_micro", "f1_macro", "auroc")}  # fmt: skip


def average_precisions(logits: Tensor, label: Tensor) -> np.ndarray:
    """[C] each class's average precision; nan for one that nobody has.

    Args:
        logits, label: [N, C]; labels 0, 1, or below 0 where that isn't known.
    """
    from sklearn import config_context
    from sklearn import metrics as sk

    scores, true = logits.cpu().numpy(), label.cpu().numpy()
    found = np.full(true.shape[1], np.nan)
    with config_context(skip_parameter_validation=True):  # which takes a good part of the time, for every class anew
        for c in range(true.shape[1]):
            known = true[:, c] >= 0
            if (true[:, c] == 1).any():
                found[c] = sk.average_precision_score(true[known, c], scores[known, c])
    return found


def several_metrics_of(logits: Tensor, label: Tensor) -> SeveralMetrics:
    """Metrics of logits and labels [N, C]; see `average_precisions`."""
    from sklearn import config_context
    from sklearn import metrics as sk

    precision = average_precisions(logits, label)
    scores, true = logits.cpu().numpy(), label.cpu().numpy()
    said, known, has = scores > 0, true >= 0, true == 1
    areas = []
    with config_context(skip_parameter_validation=True):
        for c in range(true.shape[1]):
            if has[:, c].any() and (true[:, c] == 0).any():
                areas.append(sk.roc_auc_score(has[known[:, c], c], scores[known[:, c], c]))
    right, wrong = (has & said).sum(axis=0), ((has != said) & known).sum(axis=0)
    occurs = right + wrong > 0
    f1 = 2 * right[occurs] / (2 * right + wrong)[occurs]  # as scikit-learn has it, for all classes at once
    present, counts = np.isfinite(precision), has.sum(axis=0)
    nan = float("nan")
    return SeveralMetrics(
        map_macro=float(precision[present].mean()) if present.any() else nan,
        map_weighted=float(np.average(precision[present], weights=counts[present])) if present.any() else nan,
        f1_micro=float(2 * right.sum() / max(1, (2 * right + wrong).sum())) if known.any() else nan,
        f1_macro=float(f1.mean()) if len(f1) else nan,
        auroc=float(np.mean(areas)) if areas else nan,
        average_precision=tuple(float(x) for x in precision),
        absent=tuple(int(c) for c in np.flatnonzero(~present)),
    )
