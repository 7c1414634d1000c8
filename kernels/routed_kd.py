"""Distillation losses per instance, over one, several or a mixture of teachers, with the task loss beside them.

    KD_b(a <- r) = T^2 sum_c p_b[c] (log p_b[c] - log q_b[c]),  p = softmax(r / T), q = softmax(a / T)

and for dense logits [B, C, H, W] the mean over the pixels. With several teachers per instance either the weighted sum
of the chosen ones' losses, or the loss against one mixture of their logits. The gradients need no more than p and q:

    dKD/da = T (sum_m w_m q - sum_m w_m p_m),   dKD/dw_m = KD_m,   dKD/dr_c = T p_c (log p_c - log q_c - KD / T^2)

All return [B]: the caller averages over the global batch. -inf logits are classes that are left out (p log p = 0); NaN
in an instance's logits makes its loss NaN and leaves the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.kd import Distil
from .cpu.kd_small import SMALL, distil
from .launch import FLOATING, check_floating, check_indices, plain_cpu, use_triton, wide


@dataclass(frozen=True)
class Distilled:
    """Losses of a batch.

    Attributes:
        loss: [B] kd_scale * kd + task_scale * task, differentiable.
        kd: [B] distillation loss, for reports: no gradient.
        task: [B] cross entropy with the label (dense: the sum over the labelled pixels), for reports.
    """

    loss: Tensor
    kd: Tensor
    task: Tensor


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_c p (log p - log q) per instance, dense: the mean over the pixels."""
    p = log_p.exp()
    if log_p.device.type == "cpu" and not log_p.requires_grad and not torch.compiler.is_compiling():
        # almost no batch has a masked class, and here a look at the result costs nothing
        rows = (p * (log_p - log_q)).sum(dim=1)
        if not bool(rows.isnan().any()):
            return rows.flatten(1).mean(dim=1) if rows.dim() > 1 else rows
    # p = 0 where a masked class has -inf in the reference: 0 * (-inf - x) counts as 0, as in KL
    nothing = p == 0
    if log_p.requires_grad:  # neither may the gradient at p meet an infinite logarithm
        log_p, log_q = torch.where(nothing, 0.0, log_p), torch.where(nothing, 0.0, log_q)
    rows = (p * (log_p - log_q)).masked_fill(nothing, 0.0).sum(dim=1)
    return rows.flatten(1).mean(dim=1) if rows.dim() > 1 else rows


def kd_reference(learner: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """KD(learner <- reference) [B] in plain PyTorch."""
    acc = wide(torch.promote_types(learner.dtype, reference.dtype))
    log_p, log_q = ((x.to(acc) / temperature).log_softmax(dim=1) for x in (reference, learner))
    return _divergence(log_p, log_q) * temperature**2


def distillation_loss_reference(
    student: Tensor,
    teachers: Tensor,
    indices: Tensor | None = None,
    weights: Tensor | None = None,
    label: Tensor | None = None,
    rows: Tensor | None = None,
    temperature: float = 4.0,
    mixture: bool = False,
    kd_scale: Tensor | None = None,
    task_scale: Tensor | None = None,
    ignore_index: int = -100,
) -> Distilled:
    """`distillation_loss` in plain PyTorch."""
    acc = wide(torch.promote_types(student.dtype, teachers.dtype))
    at = torch.arange(len(student), device=student.device) if rows is None else rows
    if indices is None:
        chosen = [teachers[at, m] for m in range(teachers.shape[1])]
    else:
        chosen = [teachers[at, indices[:, i]] for i in range(indices.shape[1])]
    if mixture:
        logits = torch.stack(chosen, dim=1).to(acc)
        share = logits.new_full(logits.shape[:2], 1.0 / len(chosen)) if weights is None else weights.to(acc)
        chosen, weights = [torch.einsum("bm,bm...->b...", share, logits)], None
    log_q = (student.to(acc) / temperature).log_softmax(dim=1)
    each = torch.stack([_divergence((z.to(acc) / temperature).log_softmax(dim=1), log_q) for z in chosen], dim=1)
    kd = (each.mean(dim=1) if weights is None else (each * weights.to(acc)).sum(dim=1)) * temperature**2
    loss = kd if kd_scale is None else kd * kd_scale.to(acc)
    task = torch.zeros_like(kd)
    if label is not None:
        task = F.cross_entropy(student.to(acc), label, ignore_index=ignore_index, reduction="none")
        task = task.flatten(1).sum(dim=1) if task.dim() > 1 else task
        loss = loss + (task if task_scale is None else task * task_scale.to(acc))
    return Distilled(loss, kd.detach(), task.detach())


def distillation_loss(
    student: Tensor,
    teachers: Tensor,
    indices: Tensor | None = None,
    weights: Tensor | None = None,
    label: Tensor | None = None,
    rows: Tensor | None = None,
    temperature: float = 4.0,
    mixture: bool = False,
    kd_scale: Tensor | None = None,
    task_scale: Tensor | None = None,
    ignore_index: int = -100,
    gaps: bool = False,
) -> Distilled:
    """KD to chosen teachers and cross entropy with the label; on a GPU loss and gradient in one launch.

    Args:
        student: [B, C] or [B, C, H, W] logits of any floating dtype; computed in float32 or wider.
        teachers: [B, M, C] or [B, M, C, H, W] logits: constants. With `rows`, a table [N, M, C, ...] of a data set.
        indices: [B, K] int64 in [0, M), the chosen teachers; None: all.
        weights: [B, K] what each chosen teacher counts, differentiable; None: 1/K each.
        label: [B] or [B, H, W] int64; None: no task loss. Positions with `ignore_index` don't count in it.
        rows: [B] int64, the instances' positions in the table.
        temperature: T > 0.
        mixture: one loss to the weighted sum of the teachers' logits in place of the weighted sum of losses; needs
            indices=None.
        kd_scale, task_scale: [B] factors of the two losses; None: 1. Batch weights belong here rather than outside:
            the gradient then leaves the kernel ready.
        gaps: teachers may be missing: an index -1 is nobody and weighs 0, without weights the others of its instance
            share alike; in a mixture a teacher of weight 0 is. An instance with nobody has the task loss alone. What
            the teachers' logits hold there doesn't matter if it is finite.

    Raises:
        ValueError: shapes, dtypes, devices, T or indices that don't fit.
    """
    if gaps and mixture and weights is not None:
        some, kd_scale = somebody(weights, kd_scale)
        found = distillation_loss(student, teachers, indices, weights, label, rows, temperature, mixture, kd_scale,
                                  task_scale, ignore_index)  # fmt: skip
        return replace(found, kd=torch.where(some, found.kd, 0.0))
    if gaps and indices is not None and indices.dim() == 2:
        indices, weights = filled(indices, weights, student.dtype)
    check_arguments(student, teachers, indices, weights, label, rows, temperature, mixture, kd_scale, task_scale)
    tensors = (student, teachers, indices, weights, label, rows, kd_scale, task_scale)
    if not use_triton(*tensors):
        factors = [x for x in (kd_scale, task_scale) if x is not None]
        if plain_cpu(student) and not any(x.requires_grad for x in factors):
            return _on_cpu(student, teachers.detach(), indices, weights, label, rows, temperature, mixture, kd_scale,
                           task_scale, ignore_index)  # fmt: skip
        return distillation_loss_reference(
            student, teachers.detach(), indices, weights, label, rows, temperature, mixture, kd_scale, task_scale,
            ignore_index,
        )  # fmt: skip
    return _operator(student, teachers.detach(), indices, weights, label, rows, temperature, mixture, kd_scale,
                     task_scale, ignore_index)  # fmt: skip


def somebody(weights: Tensor, kd_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B] whether an instance has any teacher in a mixture of these weights [B, M], and factors that are 0 where it has
    none."""
    some = (weights.detach() > 0).any(dim=1)
    return some, some.to(weights.dtype) if kd_scale is None else torch.where(some, kd_scale, 0.0)


def filled(indices: Tensor, weights: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Indices [B, K] without -1, and weights that are 0 there."""
    there = indices >= 0
    if weights is None:
        weights = there.to(wide(dtype)) / there.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        weights = torch.where(there, weights, 0.0)
    # the instance's own first teacher stands in: its loss is finite if any is
    return torch.where(there, indices, indices[:, :1].clamp(min=0)), weights


def _on_cpu(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
    ignore_index: int,
) -> Distilled:  # fmt: skip
    acc = wide(torch.promote_types(student.dtype, teachers.dtype))
    if student.dim() == 2 and not mixture and 0 < student.numel() <= SMALL:
        found = distil(student, teachers, indices, weights, label, rows, float(temperature), kd_scale, task_scale,
                       ignore_index, acc)  # fmt: skip
        if found is not None:
            return Distilled(*found)
    if student.dim() == 4:
        student, teachers = student.flatten(2), teachers.flatten(3)
        label = label.flatten(1) if label is not None else None
    settings = (float(temperature), mixture, ignore_index, acc)
    loss, kd, task = Distil.apply(student, weights, teachers, indices, label, rows, kd_scale, task_scale, settings)
    return Distilled(loss, kd, task)


def _operator(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
    ignore_index: int,
) -> Distilled:  # fmt: skip
    from .jit import kd as jit

    if student.dim() == 4:
        student, teachers = student.flatten(2), teachers.flatten(3)
        label = label.flatten(1) if label is not None else None
    recording = torch.is_grad_enabled()
    loss, kd, task, *_ = jit.distil(
        student, teachers, rows, indices, weights, label, kd_scale, task_scale, float(temperature), mixture,
        ignore_index, recording and student.requires_grad,
        recording and weights is not None and weights.requires_grad, recording and teachers.requires_grad,
    )  # fmt: skip
    return Distilled(loss, kd, task)


def kd_rows(learner: Tensor, reference: Tensor, temperature: float = 4.0) -> Tensor:
    """KD(learner <- reference) per instance (Hinton et al. 2015; paper, equation of the stage-1 loss).

    Args:
        learner, reference: [B, C] or [B, C, H, W] logits of any floating dtype; computed in float32 or wider.
        temperature: T > 0.

    Returns:
        [B] losses; gradients flow into both arguments.
    """
    if learner.shape != reference.shape:
        raise ValueError(f"learner {tuple(learner.shape)} and reference {tuple(reference.shape)} must have one shape")
    teachers = reference.unsqueeze(1)
    check_arguments(learner, teachers, None, None, None, None, temperature, False, None, None)
    if not use_triton(learner, reference):
        if plain_cpu(learner) and not reference.requires_grad:
            return _on_cpu(learner, teachers, None, None, None, None, temperature, False, None, None, -100).loss
        return kd_reference(learner, reference, temperature)
    return _operator(learner, teachers, None, None, None, None, temperature, False, None, None, -100).loss


def routed_kd_loss(
    student: Tensor,
    teachers: Tensor,
    indices: Tensor,
    weights: Tensor | None = None,
    temperature: float = 4.0,
    rows: Tensor | None = None,
    gaps: bool = False,
) -> Tensor:
    """Mean (or weighted) KD of each instance to its chosen teachers (method, L_kd of stage 3); see `distillation_loss`.

    Returns:
        [B] losses.
    """
    return distillation_loss(student, teachers, indices, weights, rows=rows, temperature=temperature, gaps=gaps).loss


def mixed_kd_rows(
    student: Tensor, teachers: Tensor, weights: Tensor, temperature: float = 4.0, rows: Tensor | None = None
) -> Tensor:
    """KD of each instance to the weighted sum of all teachers' logits (method, the soft rule).

    Args:
        weights: [B, M], differentiable. The others as in `distillation_loss`.

    Returns:
        [B] losses.
    """
    return distillation_loss(student, teachers, None, weights, rows=rows, temperature=temperature, mixture=True).loss


def check_arguments(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
) -> None:  # fmt: skip
    """Raise ValueError, naming the argument, for what doesn't fit."""
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    check_floating(student=student, teachers=teachers)
    shape, taught = student.shape, teachers.shape
    if len(shape) not in (2, 4):
        raise ValueError(f"student: shape {list(shape)}; must be [B, C] or [B, C, H, W]")
    batch, tail = shape[0], shape[1:]
    if len(taught) != len(shape) + 1 or taught[2:] != tail or (rows is None and taught[0] != batch):
        first = "N" if rows is not None else batch
        wanted = f"[{first}, M, {', '.join(str(n) for n in tail)}]"
        raise ValueError(f"teachers: shape {list(taught)}; must be {wanted} for this student")
    table, num_teachers = taught[:2]
    if num_teachers < 1:
        raise ValueError("teachers: there is none; the second axis counts them")
    if mixture and indices is not None:
        raise ValueError("indices: a mixture is of all teachers; leave indices out and give weights")
    chosen = num_teachers if indices is None else (indices.shape[1] if indices.dim() == 2 else 0)
    if indices is not None and (indices.dtype != torch.int64 or indices.shape != (batch, chosen) or not chosen):
        _refuse("indices", indices, (batch, chosen or 1), whole=True)
    if weights is not None and (weights.dtype not in FLOATING or weights.shape != (batch, chosen)):
        _refuse("weights", weights, (batch, chosen))
    if label is not None and (label.dtype != torch.int64 or label.shape != (batch, *tail[1:])):
        _refuse("label", label, (batch, *tail[1:]), whole=True)
    if rows is not None and (rows.dtype != torch.int64 or rows.shape != (batch,)):
        _refuse("rows", rows, (batch,), whole=True)
    if kd_scale is not None and (kd_scale.dtype not in FLOATING or kd_scale.shape != (batch,)):
        _refuse("kd_scale", kd_scale, (batch,))
    if task_scale is not None and (task_scale.dtype not in FLOATING or task_scale.shape != (batch,)):
        _refuse("task_scale", task_scale, (batch,))
    if indices is not None:
        check_indices("indices", indices, num_teachers)
    if rows is not None:
        check_indices("rows", rows, table)


def _refuse(name: str, x: Tensor, shape: tuple[int, ...], whole: bool = False) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: shape {list(x.shape)}; must be {list(shape)}")
    raise ValueError(f"{name}: dtype {x.dtype}; must be {'int64' if whole else 'floating'}")
