"""Rows of logits that were given: whether they can be used, and the k largest of a row filled up to all classes."""

from __future__ import annotations

import torch
from torch import Tensor


def fault(values: Tensor, indices: Tensor | None, num_classes: int) -> tuple[int, str] | None:
    """The first row that can't be used and what is wrong with it; None: none.

    Args:
        values: [B, C] logits; with `indices` [B, k] logarithms of probabilities.
        indices: [B, k] whole numbers, whose values they are; None: values are of all classes.
    """
    values = values.to(torch.float64)
    bad = values.isnan().any(dim=1) | (values == torch.inf).any(dim=1) | (values == -torch.inf).all(dim=1)
    what = "NaN, or no finite number"
    if indices is not None and not bad.any():
        indices = indices.to(torch.int64)
        ordered = indices.sort(dim=1).values
        bad = (indices < 0).any(dim=1) | (indices >= num_classes).any(dim=1)
        bad |= (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
        what = f"indices outside 0..{num_classes - 1}, or one twice"
        if not bad.any():
            bad, what = values.exp().sum(dim=1) > 1.001, "probabilities over 1: give logarithms of probabilities"
    return (int(bad.nonzero()[0]), what) if bad.any() else None


def filled(values: Tensor, indices: Tensor, num_classes: int) -> Tensor:
    """[B, C] float32 from the k largest; the rest of a row's probability is spread evenly over its other classes.

    Args:
        values: [B, k] logarithms of probabilities.
        indices: [B, k] whole numbers.
    """
    values = values.float()
    rest = (1.0 - values.exp().sum(dim=1, keepdim=True)).clamp_min(1e-6) / max(1, num_classes - values.shape[1])
    return rest.log().expand(-1, num_classes).clone().scatter_(1, indices.to(torch.int64), values)
