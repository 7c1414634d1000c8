"""Routing on a CPU: `router.py`'s equations with the backward in closed form and a stable order without a sort; of few
instances torch's own graph, and a sort where there are equals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..constants import LOWEST
from ..launch import fake, truth
from .kd_small import LEAST, in_columns

# Up to so many numbers a batch is small.
SMALL = 2**14
# Scores that are looked at together in `top_k`: what it keeps of them is four times as large.
_BLOCK = 2**17
# More than there may be teachers.
_COLUMNS = 1024
# Sums of probabilities below this are taken by logarithms: their terms may have underflowed.
_STARVED = 1e-20


def route(logits: Tensor, weight: Tensor | None, balance: str, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `Route` gives it; where there is little to do with fewer calls from Python."""
    if 0 < logits.numel() <= SMALL and logits.shape[1] > 1 and balance != "CV":
        found = _route_small(logits, weight, balance, k)
        if found is not None:
            return found
    made: tuple[Tensor, Tensor, Tensor, Tensor] = Route.apply(logits, weight, balance, k)
    return made


def _route_small(
    logits: Tensor, weight: Tensor | None, balance: str, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """None where a teacher is nearly starved anywhere, a number isn't finite, or nothing counts: elsewhere torch's own
    backward loses nothing, and makes fewer calls from Python than a written one."""
    probs = logits.softmax(dim=1)
    least = probs.detach().amin()  # of a plan too, which counts it
    if not fake(least) and not least.item() > _STARVED:  # or NaN
        return None
    log_sums = _weighted(probs, weight, False).log()
    if weight is not None and not truth(torch.isfinite(log_sums.detach().sum()), True):
        return None
    loss, _ = _balance(log_sums, float(logits.shape[0]) if weight is None else weight.sum(), balance)
    log_probs = probs.log()
    return log_probs, log_sums, loss, top_k(log_probs.detach(), k)


def _log_probabilities(logits: Tensor, few: bool) -> Tensor:
    """Few teachers in columns: [M, B], others [B, M]."""
    return (logits.t() if few else logits).log_softmax(dim=0 if few else 1)


def _sums(log_probs: Tensor, weight: Tensor | None, few: bool) -> tuple[Tensor, Tensor]:
    """Probabilities, and their weighted sums [M]."""
    # below the smallest float32, exp takes forty times as long, and nothing reads the difference
    probs = log_probs.clamp(min=LEAST).exp_()
    return probs, _weighted(probs, weight, few)


def _weighted(probs: Tensor, weight: Tensor | None, few: bool) -> Tensor:
    """[M] sums over the instances."""
    if weight is not None:
        return probs @ weight if few else weight @ probs
    return probs.sum(dim=1 if few else 0)


class Route(torch.autograd.Function):
    """logits [B, M], float32 or wider -> log-probabilities [B, M], log sums [M], the load-balance loss, indices [B, K].

    Few teachers stand in columns: along the first axis torch's softmax takes many instances at once.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, weight: Tensor | None, balance: str, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        few = in_columns(*logits.shape)
        log_probs = _log_probabilities(logits, few)
        rows = log_probs.t() if few else log_probs
        indices = top_k(rows, k)  # before there are probabilities: it takes memory for a moment
        probs, sums = _sums(log_probs, weight, few)
        starved = not truth(sums.amin() > _STARVED, True)  # or NaN
        log_sums = _log_sums(rows, weight) if starved else sums.log()
        loss, slope = _balance(log_sums, float(logits.shape[0]) if weight is None else weight.sum(), balance)
        ctx.save_for_backward(probs, log_sums, weight, slope if isinstance(slope, Tensor) else None)
        ctx.starved, ctx.slope, ctx.few = log_probs if starved else None, slope, few
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(indices)
        return rows, log_sums, loss, indices

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, towards_probs: Tensor | None, towards_sums: Tensor | None, towards_loss: Tensor | None, _: Any
    ) -> tuple[Tensor | None, None, None, None]:
        probs, log_sums, weight, slope = ctx.saved_tensors
        few = ctx.few
        at_sums = _at_sums(towards_sums, towards_loss, ctx.slope if slope is None else slope)
        if few and towards_probs is not None:
            towards_probs = towards_probs.t()
        if at_sums is None:
            if towards_probs is None:
                return None, None, None, None
            v = towards_probs
        else:
            v = _shares(probs, log_sums, weight, ctx.starved, at_sums, few)
            v = v if towards_probs is None else v.add_(towards_probs)
        towards = v.sum(dim=0 if few else 1, keepdim=True)
        made = (
            torch.addcmul(v, probs, towards, value=-1) if v is towards_probs else v.addcmul_(probs, towards, value=-1)
        )
        return made.t() if few else made, None, None, None


def _at_sums(towards_sums: Tensor | None, towards_loss: Tensor | None, slope: float | Tensor | None) -> Tensor | None:
    """The gradient at the log sums [M], the load-balance loss's share of it included; None: none."""
    if towards_loss is None or slope is None:
        return towards_sums
    at_loss = towards_loss * slope
    return at_loss if towards_sums is None else towards_sums + at_loss


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest of scores [B, M], the lowest index first among equals."""
    if not scores.numel():
        return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int64)
    if k == 1:  # the first of the largest, as torch promises
        return scores.max(dim=-1, keepdim=True)[1]
    if scores.numel() <= SMALL:
        found = scores.topk(min(k + 1, scores.shape[-1]), dim=-1)
        gaps = found.values.diff(dim=-1)
        if gaps.numel() == 0 or truth(gaps.amax() < 0, True):  # neither equals nor NaN
            return found.indices[..., :k]
        return _sorted(scores, k)
    if scores.dtype == torch.float64 or scores.dim() != 2 or truth(scores.amax().isnan(), False):
        return _sorted(scores, k)
    step = max(1, _BLOCK // scores.shape[1])
    parts = [_top_k(part, k) for part in scores.contiguous().split(step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sorted(scores: Tensor, k: int) -> Tensor:
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def _top_k(scores: Tensor, k: int) -> Tensor:
    """As `top_k`, by whole numbers that hold a score and, below it, how early its column stands: no two are equal.

    A maximum of whole numbers is found ten times faster than a maximum with its place.
    """
    teachers = scores.shape[1]
    bits = (scores.float() + 0.0).view(torch.int32)  # -0 and 0 are equal
    bits = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))  # negative numbers in their order
    keys = bits.to(torch.int64).mul_(_COLUMNS).add_(torch.arange(teachers - 1, -1, -1))
    ends = torch.arange(teachers - 1, keys.numel() + teachers - 1, teachers)
    found = torch.empty(k, len(scores), dtype=torch.int64)
    for i in range(k):
        early = torch.amax(keys, dim=1).bitwise_and_(_COLUMNS - 1)
        found[i] = early
        if i + 1 < k:
            keys.view(-1).index_fill_(0, ends - early, torch.iinfo(torch.int64).min)
    return (teachers - 1 - found).t()


def count(indices: Tensor, num_teachers: int, weight: Tensor | None) -> Tensor:
    """[M] int64, how often each teacher is among the indices [B, K] of instances with a positive weight [B]."""
    if weight is None and not fake(indices):
        return torch.bincount(indices.reshape(-1), minlength=num_teachers)
    counted = torch.ones_like(indices) if weight is None else (weight > 0).long().unsqueeze(1).expand_as(indices)
    zeros = torch.zeros(num_teachers, dtype=torch.int64)
    return zeros.index_add_(0, indices.reshape(-1), counted.reshape(-1))


def _shares(
    probs: Tensor, log_sums: Tensor, weight: Tensor | None, starved: Tensor | None, at_sums: Tensor, few: bool
) -> Tensor:
    """What the log sums hand to each log-probability, laid as `probs`: w r / sum r times their gradient."""

    def by_teacher(x: Tensor) -> Tensor:
        return x.unsqueeze(1) if few and x.dim() else x

    def by_row(x: Tensor) -> Tensor:
        return x if few else x.unsqueeze(1)

    if starved is None:
        share = probs * by_teacher(log_sums.neg().exp_().mul_(at_sums))
        return share if weight is None else share.mul_(by_row(weight))
    level = starved - by_teacher(log_sums)
    if weight is not None:
        level = level + by_row(torch.where(weight > 0, weight, 1.0).log())
        level = level.masked_fill(by_row(weight <= 0), -math.inf)
    return level.exp() * by_teacher(at_sums)


def _log_sums(log_probs: Tensor, weight: Tensor | None) -> Tensor:
    """[M] log of the weighted sums of probabilities, where these may underflow."""
    level = log_probs.clamp(min=LOWEST)
    if weight is not None:
        level = level + torch.where(weight > 0, weight, 1.0).log().unsqueeze(1)
        level = level.masked_fill((weight <= 0).unsqueeze(1), LOWEST)
    return level.logsumexp(dim=0).clamp(min=LOWEST)


def _balance(log_sums: Tensor, total: float | Tensor, mode: str) -> tuple[Tensor, float | Tensor | None]:
    """The load-balance loss and its gradient at the log sums, [M] or one number; see `router.balance_from_sums`."""
    teachers = log_sums.shape[0]
    if not mode or (total == 0 if isinstance(total, float) else truth(total == 0, False)):
        return log_sums.new_zeros(()), None
    if mode == "KL":
        if isinstance(total, float):
            loss = torch.rsub(log_sums.sum(), math.log(total / teachers) / teachers, alpha=1.0 / teachers**2)
        else:
            loss = ((total / teachers).log() - log_sums.mean()) / teachers
        return loss, -1.0 / teachers**2
    if teachers == 1:
        return log_sums.sum() * 0.0, None
    importance = log_sums.exp()
    mean = importance.mean()
    apart = importance - mean
    deviation = (apart.square().sum() / (teachers - 1)).sqrt()
    along = torch.where(deviation == 0, 0.0, apart / deviation) / ((teachers - 1) * mean)
    return deviation / mean, (along - deviation / (teachers * mean**2)) * importance
