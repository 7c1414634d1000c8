"""Distillation losses of a few rows on a CPU: so little work that calls count, not passes.

Torch's own backward makes fewer calls from Python than a written one. Rows of few classes stand in columns: along the
first axis torch's softmax takes many of them at once, along the last one after the other, ten times slower for ten.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import fake

# Up to so many numbers of logits a batch is small.
SMALL = 2**17
# Rows of up to so many classes stand in columns.
FEW = 24
# Of whole vectors alone: what is left over would be rounded otherwise, by its place in the batch.
_VECTOR, _WORTH = 16, 64


def in_columns(rows: int, width: int) -> bool:
    """Whether [rows, width] is laid in columns for a softmax over its width."""
    return width <= FEW and rows >= _WORTH and rows % _VECTOR == 0


def distil(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, kd_scale: Tensor | None, task_scale: Tensor | None, ignore_index: int,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Loss, distillation loss and task loss [B] of logits [B, C]; None where a class is masked or not a number.

    Arguments as of `routed_kd.distillation_loss`, checked.
    """
    cooler, less = 1.0 / temperature, -(temperature**2)  # of -KL
    few = in_columns(*student.shape)
    axis = 0 if few else 1
    student = student if student.dtype == acc else student.to(acc)
    laid = student.t() if few else student
    log_q = (laid * cooler).log_softmax(axis)
    teacher_rows, stride = teachers.flatten(0, 1), teachers.shape[1]
    first = torch.arange(0, len(student) * stride, stride) if rows is None else rows * stride
    losses = []
    for i in range(stride if indices is None else indices.shape[1]):
        logits = teacher_rows.index_select(0, first + (i if indices is None else indices[:, i]))
        logits = (logits if logits.dtype == acc else logits.to(acc)).mul_(cooler)
        logits = logits.t() if few else logits
        # this way round no pass of the backward turns a sign
        losses.append(((log_q - logits.log_softmax(axis)) * logits.softmax(axis)).sum(axis))
    each = losses[0] if len(losses) == 1 else torch.stack(losses, dim=1)
    if not fake(each) and not math.isfinite(each.detach().sum().item()):
        return None
    if weights is not None:
        each = (each.view(len(student), -1) * weights.to(acc)).sum(dim=1)
    elif len(losses) > 1:
        each = each.mean(dim=1)
    loss = kd = each * less
    if kd_scale is not None:
        loss = kd * kd_scale.to(acc)
    if label is None:
        return loss if loss is not kd else kd.clone(), kd.detach(), torch.zeros_like(kd.detach())
    log_s = laid.log_softmax(axis)
    task = F.nll_loss(log_s.t() if few else log_s, label, ignore_index=ignore_index, reduction="none")
    loss = loss + task if task_scale is None else torch.addcmul(loss, task, task_scale.to(acc))
    return loss, kd.detach(), task.detach()
