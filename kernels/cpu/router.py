"""Routing on a CPU: `router.py`'s equations with the backward in closed form and a stable order without a sort."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..constants import LOWEST

# Sums of probabilities below this are taken by logarithms: their terms may have underflowed.
_STARVED = 1e-20


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest of scores [B, M], the lowest index first among equals: k passes, no sort."""
    if not scores.numel():
        return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int64)
    best = scores.max(dim=-1, keepdim=True)  # the first of the largest, as torch promises
    found, left = [best.indices], scores
    for _ in range(k - 1):
        left = (
            left.scatter(-1, best.indices, -math.inf) if left is scores else left.scatter_(-1, best.indices, -math.inf)
        )
        best = left.max(dim=-1, keepdim=True)
        found.append(best.indices)
    if k > 1 and not bool(best.values.amin() > -math.inf):
        # fewer than k finite ones in a row, or NaN: what is taken out can't be told from what was never there
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.cat(found, dim=-1) if k > 1 else found[0]


def count(indices: Tensor, num_teachers: int, weight: Tensor | None) -> Tensor:
    """[M] int64, how often each teacher is among the indices [B, K] of instances with a positive weight [B]."""
    counted = indices if weight is None else indices[weight > 0]
    return torch.bincount(counted.reshape(-1), minlength=num_teachers)


class Route(torch.autograd.Function):
    """logits [B, M] in float32 or wider -> log-probabilities [B, M], log sums [M] and the load-balance loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor | None, balance: str) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = logits.log_softmax(dim=-1)
        probs = log_probs.exp()
        sums = probs.sum(dim=0) if weight is None else weight @ probs
        starved = not bool(sums.amin() > _STARVED)  # or NaN
        log_sums = _log_sums(log_probs, weight) if starved else sums.log()
        total = float(len(logits)) if weight is None else float(weight.sum())
        loss, slope = _balance(log_sums, total, balance)
        ctx.save_for_backward(probs, log_sums, weight, slope)
        ctx.starved = log_probs if starved else None
        ctx.set_materialize_grads(False)
        return log_probs, log_sums, loss

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, towards_probs: Tensor | None, towards_sums: Tensor | None, towards_loss: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        probs, log_sums, weight, slope = ctx.saved_tensors
        at_sums = towards_sums
        if towards_loss is not None and slope is not None:
            at_sums = slope * towards_loss if at_sums is None else torch.addcmul(at_sums, slope, towards_loss)
        if at_sums is None:
            if towards_probs is None:
                return None, None, None
            outer = towards_probs
            v = outer
        else:
            share = _shares(probs, log_sums, weight, ctx.starved, at_sums)
            v = share if towards_probs is None else share.add_(towards_probs)
        towards = v.sum(dim=1, keepdim=True)
        made = (
            torch.addcmul(v, probs, towards, value=-1) if v is towards_probs else v.addcmul_(probs, towards, value=-1)
        )
        return made, None, None


def _shares(probs: Tensor, log_sums: Tensor, weight: Tensor | None, starved: Tensor | None, at_sums: Tensor) -> Tensor:
    """What the log sums hand to each log-probability [B, M]: w r / sum r times their gradient."""
    if starved is None:
        share = probs * (at_sums * (-log_sums).exp())
        return share if weight is None else share.mul_(weight.unsqueeze(1))
    level = starved - log_sums
    if weight is not None:
        level = level + torch.where(weight > 0, weight, 1.0).log().unsqueeze(1)
        level = level.masked_fill((weight <= 0).unsqueeze(1), -math.inf)
    return level.exp() * at_sums


def _log_sums(log_probs: Tensor, weight: Tensor | None) -> Tensor:
    """[M] log of the weighted sums of probabilities, where these may underflow."""
    level = log_probs.clamp(min=LOWEST)
    if weight is not None:
        level = level + torch.where(weight > 0, weight, 1.0).log().unsqueeze(1)
        level = level.masked_fill((weight <= 0).unsqueeze(1), LOWEST)
    return level.logsumexp(dim=0).clamp(min=LOWEST)


def _balance(log_sums: Tensor, total: float, mode: str) -> tuple[Tensor, Tensor | None]:
    """The load-balance loss and its gradient [M] at the log sums; see `router.balance_from_sums`."""
    teachers = len(log_sums)
    if not mode or total == 0:
        return log_sums.new_zeros(()), None
    if mode == "KL":
        loss = (math.log(total / teachers) - log_sums.mean()) / teachers
        return loss, log_sums.new_full((teachers,), -1.0 / teachers**2)
    if teachers == 1:
        return log_sums.sum() * 0.0, None
    importance = log_sums.exp()
    mean = importance.mean()
    apart = importance - mean
    deviation = (apart.square().sum() / (teachers - 1)).sqrt()
    along = torch.where(deviation == 0, 0.0, apart / deviation) / ((teachers - 1) * mean)
    at_importance = along - deviation / (teachers * mean**2)
    return deviation / mean, at_importance * importance
