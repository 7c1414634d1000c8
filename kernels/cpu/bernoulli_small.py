"""Bernoulli distillation of a few rows on a CPU: so little work that calls count, not passes.

With a = |z| / T the teacher's logit on the side that it takes, b the student's there, p = sigma(-a) and q = sigma(-b):

    KD = T^2 / C sum_c [p (b - a) + log (1 + (q - p) / (1 - q))]

which is `bernoulli.py`'s divergence with as many digits and half the calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..launch import fake
from .bernoulli import with_sign_of
from .kd_small import places

# Up to so many numbers of logits a batch is small.
SMALL = 2**17


def distil(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, kd_scale: Tensor | None, task_scale: Tensor | None, acc: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Loss, distillation loss and task loss [B] of logits [B, C]; None where a logit is infinite, a probability
    vanishes or something is no label.

    Arguments as of `bernoulli_kd.bernoulli_distillation`, checked, of which the student alone learns.
    """
    needs = student.requires_grad and torch.is_grad_enabled()
    logits = student.detach()
    logits = logits if logits.dtype == acc else logits.to(acc)
    with torch.no_grad():
        kd, slope = _divergences(logits, teachers, indices, weights, rows, temperature, needs)
        loss = kd if kd_scale is None else kd * kd_scale.to(acc)
        if slope is not None and kd_scale is not None:
            slope.mul_(kd_scale.to(acc).unsqueeze(1))
        if label is None:
            task = torch.zeros_like(kd)
            loss = kd.clone() if loss is kd else loss
        else:
            task, steep = _entropies(logits, label, needs)
            scale = None if task_scale is None else task_scale.to(acc)
            loss = loss + task if scale is None else torch.addcmul(loss, task, scale)
            if slope is not None and steep is not None:
                slope = slope.add_(steep) if scale is None else slope.addcmul_(steep, scale.unsqueeze(1))
        if not fake(loss) and not math.isfinite((kd + task).sum().item()):
            return None
    return (loss if slope is None else Known.apply(student, loss, slope)), kd, task


def _divergences(
    logits: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, rows: Tensor | None,
    temperature: float, needs: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[B] distillation losses, and their gradient [B, C] where it is needed."""
    (batch, classes), cooler = logits.shape, 1.0 / temperature
    weights = None if weights is None else weights.to(logits.dtype)
    v, table = logits * cooler, teachers.flatten(0, 1)
    every, taught = [], None
    for i, place in enumerate(places(teachers, indices, rows, batch)):
        u = table.index_select(0, place)
        u = (u if u.dtype == logits.dtype else u.to(logits.dtype)).mul_(cooler)
        a, b = u.abs(), with_sign_of(u, v)
        p = a.neg().sigmoid_()
        each = b.neg().sigmoid_().sub_(p).div_(b.sigmoid()).log1p_()
        every.append(each.addcmul_(p, b.sub_(a)).sum(dim=1))
        if needs:
            p = u.sigmoid_() if weights is None else u.sigmoid_().mul_(weights[:, i : i + 1])
            taught = p if taught is None else taught.add_(p)
    losses = every[0] if len(every) == 1 else torch.stack(every, dim=1)
    if weights is not None:
        losses = (losses.view(batch, -1) * weights).sum(dim=1)
    elif len(every) > 1:
        losses = losses.mean(dim=1)
    kd = losses.mul_(temperature**2 / classes)
    if taught is None:
        return kd, None
    q = v.sigmoid_()
    if weights is not None:
        q.mul_(weights.sum(dim=1, keepdim=True))
    elif len(every) > 1:
        taught.div_(len(every))
    return kd, q.sub_(taught).mul_(temperature / classes)


def _entropies(logits: Tensor, label: Tensor, needs: bool) -> tuple[Tensor, Tensor | None]:
    """[B] task losses, NaN where something is no label, and their gradient [B, C] where it is needed."""
    y = label if label.dtype == logits.dtype else label.to(logits.dtype)
    if not fake(y) and not y.amax().item() <= 1:
        return logits.new_full(logits.shape[:1], math.nan), None
    known = y.clamp(-1, 0).floor_().add_(1)
    rest = logits.abs().neg_().sigmoid_().neg_().log1p_()
    losses = logits.clamp(min=0).sub_(rest).addcmul_(logits, y, value=-1).mul_(known).sum(dim=1)
    return losses, logits.sigmoid().sub_(y).mul_(known) if needs else None


class Known(torch.autograd.Function):
    """student [B, C], losses [B] and their gradient [B, C] at the student -> the losses."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.dtype = student.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * outer.unsqueeze(1)).to(ctx.dtype), None, None
