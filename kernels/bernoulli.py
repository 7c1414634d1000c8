"""A class as a yes or no of its own: divergences and cross entropies of single entries, for any logits.

A Bernoulli divergence is the same for both signs. It is taken at that of the teacher's smaller probability, where
nothing large is subtracted from something large: with a = -|u|, b the student's logit of that sign and p = sigma(a)

    KL = p (a - min(b, 0)) + (1 - p) max(b, 0) + log (1 + e^-|b|) - log (1 + e^a)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(Bern(sigma(teacher)) || Bern(sigma(student))) of each entry; a teacher that is certain needs no logarithm."""
    other = teacher > 0
    a, b = torch.where(other, -teacher, teacher), torch.where(other, -student, student)
    p = torch.sigmoid(a)
    nothing, below, above, rest = p == 0, *parts(b)
    if a.requires_grad or b.requires_grad:  # neither may the gradient at p meet an infinite logit
        safe = torch.where(nothing, 0.0, p)
        linear = safe * torch.where(nothing, 0.0, a - below) + (1 - safe) * above
        return linear + rest + torch.where(nothing, 0.0, F.logsigmoid(-a))
    linear = (p * (a - below)).masked_fill_(nothing, 0.0).add_((1 - p).mul_(above))
    return linear.add_(rest).add_(F.logsigmoid(-a))


def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """min(x, 0), max(x, 0) and log (1 + e^-|x|): what log (1 + e^x) is put together from. By one condition, so that
    the three together have the right slope at 0 too."""
    high = x > 0
    return torch.where(high, 0.0, x), torch.where(high, x, 0.0), -F.logsigmoid(torch.where(high, x, -x))


def entries(logits: Tensor, label: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """[B, C] binary cross entropies, 0 where nothing is known.

    Args:
        logits: [B, C].
        label: [B, C]: 0 or 1, or between them; below 0: not known.
        class_weights: [2, C], what a no and a yes of each class count; None: 1.
    """
    known, no, yes = counts(label, logits.dtype, class_weights)
    below, above, rest = parts(logits)
    # a class that is left out, -inf, costs nothing where it is a no
    losses = (no + yes) * rest + torch.where(no == 0, 0.0, no * above) - torch.where(yes == 0, 0.0, yes * below)
    return torch.where(known, losses, 0.0)


def counts(label: Tensor, dtype: torch.dtype, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries [B, C] are known, and what each counts as a no and as a yes; NaN for what is no label."""
    y = label.to(dtype)
    known = y >= 0
    y = torch.where(y > 1, float("nan"), y)
    if class_weights is None:
        return known, 1 - y, y
    no, yes = class_weights.to(dtype)
    return known, (1 - y) * no, y * yes
