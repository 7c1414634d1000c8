"""Distillation losses per instance, over one, several or a mixture of teachers.

    KD_b(a <- r) = T^2 sum_c p_b[c] (log p_b[c] - log q_b[c]),  p = softmax(r / T), q = softmax(a / T)

and for dense logits [B, C, H, W] the mean over the pixels. With several teachers per instance, either the mean of the
chosen ones' losses, their weighted mean, or the loss against one mixture of their logits. All return [B]: the caller
averages over the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def kd_rows(learner: Tensor, reference: Tensor, temperature: float = 4.0) -> Tensor:
    """KD(learner <- reference) per instance (Hinton et al. 2015; paper, equation of the stage-1 loss).

    Args:
        learner, reference: [B, C] or [B, C, H, W] logits of any floating dtype; computed in float32 or wider.
        temperature: T > 0.

    Returns:
        [B] losses; gradients flow into both arguments.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    if learner.shape != reference.shape:
        raise ValueError(f"learner {tuple(learner.shape)} and reference {tuple(reference.shape)} must have one shape")
    log_q = (_wide(learner) / temperature).log_softmax(dim=1)
    log_p = (_wide(reference) / temperature).log_softmax(dim=1)
    # p = 0 where a masked class has -inf in the reference: 0 * (-inf - x) counts as 0, as in KL
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    rows = terms.sum(dim=1) * temperature**2
    return rows.flatten(1).mean(dim=1) if rows.dim() > 1 else rows


def routed_kd_loss(
    student: Tensor,
    teachers: Tensor,
    indices: Tensor,
    weights: Tensor | None = None,
    temperature: float = 4.0,
) -> Tensor:
    """Mean (or weighted) KD of each instance to its chosen teachers (method, L_kd of stage 3).

    Args:
        student: [B, C] or [B, C, H, W] logits.
        teachers: [B, M, C] or [B, M, C, H, W] logits, treated as constants.
        indices: [B, K] int64 in [0, M).
        weights: [B, K] weights of the chosen teachers, differentiable; None means 1/K each.

    Returns:
        [B] losses.
    """
    num_chosen = indices.shape[1]
    rows = torch.arange(indices.shape[0], device=indices.device)
    parts = [kd_rows(student, teachers[rows, indices[:, i]].detach(), temperature) for i in range(num_chosen)]
    losses = torch.stack(parts, dim=1)
    return losses.mean(dim=1) if weights is None else (losses * weights).sum(dim=1)


def mixed_kd_rows(student: Tensor, teachers: Tensor, weights: Tensor, temperature: float = 4.0) -> Tensor:
    """KD of each instance to the weighted sum of all teachers' logits (method, the soft rule).

    Args:
        student: [B, C] or [B, C, H, W] logits.
        teachers: [B, M, C] or [B, M, C, H, W] logits, treated as constants.
        weights: [B, M], differentiable.
    """
    weights = weights.to(_wide(teachers).dtype)
    mixture = torch.einsum("bm,bm...->b...", weights, _wide(teachers).detach())
    return kd_rows(student, mixture, temperature)
