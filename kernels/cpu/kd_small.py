"""Distillation losses of a few rows on a CPU: so little work that calls count, not passes.

Torch's own backward makes fewer calls from Python than a written one. Rows shorter than a vector of the processor stand
in columns: along the first axis torch's softmax takes many of them at once, along the last a part of a vector each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import fake

# Up to so many numbers of logits a batch is small.
SMALL = 2**17
# Rows of fewer numbers stand in columns: those of a vector of float32, by what torch's kernels were built for.
FEW = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 8)
# Of whole vectors alone: what is left over would be rounded otherwise, by its place in the batch.
_VECTOR, _WORTH = 16, 64
# A logarithm whose power is still a float32: below it exp takes twenty times as long, and 0 times infinity comes near.
LEAST = -87.0


def in_columns(rows: int, width: int) -> bool:
    """Whether [rows, width] is laid in columns for a softmax over its width."""
    return width < FEW and rows >= _WORTH and rows % _VECTOR == 0


def places(teachers: Tensor, indices: Tensor | None, rows: Tensor | None, batch: int) -> list[Tensor]:
    """[B] positions of the instances' chosen teachers, one after the other, in teachers.flatten(0, 1)."""
    stride = teachers.shape[1]
    first = torch.arange(0, batch * stride, stride) if rows is None else rows * stride
    if indices is None:
        return [first + i for i in range(stride)]
    return [first + indices.select(1, i) for i in range(indices.shape[1])]


def distil(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, kd_scale: Tensor | None, task_scale: Tensor | None, ignore_index: int,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Loss, distillation loss and task loss [B] of logits [B, C]; None where a teacher's class is masked, all but
    impossible, or not a number.

    Arguments as of `routed_kd.distillation_loss`, checked.
    """
    cooler, less = 1.0 / temperature, -(temperature**2)  # of -KL
    batch, classes = student.shape
    few = in_columns(batch, classes)
    axis = 0 if few else 1
    student = student if student.dtype == acc else student.to(acc)
    laid = student.t() if few else student
    log_q = (laid * cooler).log_softmax(axis)
    table = teachers.flatten(0, 1)
    losses = []
    for place in places(teachers, indices, rows, batch):
        logits = table.index_select(0, place)
        logits = (logits if logits.dtype == acc else logits.to(acc)).mul_(cooler)
        log_p = (logits.t() if few else logits).log_softmax(axis)
        if not fake(log_p) and not log_p.amin().item() > LEAST:  # or NaN
            return None
        apart = log_q - log_p  # this way round no pass of the backward turns a sign
        losses.append((apart * log_p.exp_().mul_(less)).sum(axis))
    each = losses[0] if len(losses) == 1 else torch.stack(losses, dim=1)
    if weights is not None:
        kd = (each.view(batch, -1) * weights.to(acc)).sum(dim=1)
    else:
        kd = each if len(losses) == 1 else each.mean(dim=1)
    seen = kd.detach()
    loss = kd if kd_scale is None else kd * kd_scale.to(acc)
    if label is None:
        return loss if loss is not kd else kd.clone(), seen, torch.zeros_like(seen)
    if few:
        task = F.nll_loss(laid.log_softmax(0).t(), label, ignore_index=ignore_index, reduction="none")
    else:
        task = F.cross_entropy(student, label, ignore_index=ignore_index, reduction="none")
    loss = loss + task if task_scale is None else torch.addcmul(loss, task, task_scale.to(acc))
    return loss, seen, task.detach()
