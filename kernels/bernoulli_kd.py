"""Distillation of several classes at once, each a yes or no of its own, over chosen or mixed teachers.

    p = sigma(z / T),  q = sigma(s / T)
    KD_b(s <- z) = T^2 / C sum_c [p_c log (p_c / q_c) + (1 - p_c) log ((1 - p_c) / (1 - q_c))]
    task_b       = sum over the known c of w_yc softplus(s_c (1 - 2 y_c)),  y in {0, 1}

The distillation loss is the mean over the classes, as dense logits' is over the pixels: what it weighs beside the task
doesn't change with their number. The task loss is a sum over the entries that are known, so that `task_scale` makes it
a mean over those of a batch. Gradients need nothing of a row but itself:

    dKD/ds = T / C (q - p),   dKD/dz = T / C p (1 - p) (z - s) / T,   dtask/ds = w_y (sigma(s) - y)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bernoulli import divergence, entries
from .cpu.bernoulli import Distil
from .cpu.bernoulli_small import SMALL, distil
from .launch import plain_cpu, use_triton, wide
from .routed_kd import Distilled, check_arguments, filled, somebody


def bernoulli_kd_reference(learner: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """`bernoulli_kd_rows` in plain PyTorch."""
    acc = wide(torch.promote_types(learner.dtype, reference.dtype))
    each = divergence(reference.to(acc) / temperature, learner.to(acc) / temperature)
    return each.mean(dim=1) * temperature**2


def bernoulli_distillation_reference(
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
    class_weights: Tensor | None = None,
) -> Distilled:
    """`bernoulli_distillation` in plain PyTorch."""
    acc = wide(torch.promote_types(student.dtype, teachers.dtype))
    at = torch.arange(len(student), device=student.device) if rows is None else rows
    if indices is None:
        chosen = [teachers[at, m].to(acc) for m in range(teachers.shape[1])]
    else:
        chosen = [teachers[at, indices[:, i]].to(acc) for i in range(indices.shape[1])]
    if mixture:
        logits = torch.stack(chosen, dim=1)
        share = logits.new_full(logits.shape[:2], 1.0 / len(chosen)) if weights is None else weights.to(acc)
        chosen, weights = [torch.einsum("bm,bmc->bc", share, logits)], None
    own = student.to(acc)
    each = torch.stack([divergence(z / temperature, own / temperature).mean(dim=1) for z in chosen], dim=1)
    kd = (each.mean(dim=1) if weights is None else (each * weights.to(acc)).sum(dim=1)) * temperature**2
    loss = kd if kd_scale is None else kd * kd_scale.to(acc)
    task = torch.zeros_like(kd)
    if label is not None:
        task = entries(own, label, class_weights).sum(dim=1)
        loss = loss + (task if task_scale is None else task * task_scale.to(acc))
    return Distilled(loss, kd.detach(), task.detach())


def bernoulli_distillation(
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
    class_weights: Tensor | None = None,
    gaps: bool = False,
) -> Distilled:
    """Bernoulli KD to chosen teachers and binary cross entropy with the labels; on a GPU loss and gradient in one
    launch.

    Args:
        label: [B, C], of whole numbers or floats: 0 or 1, or between them (of mixed instances); below 0: not known,
            and counts nothing. None: no task loss.
        class_weights: [2, C] what a no and a yes of each class count in the task loss; None: 1.

    The others are those of `distillation_loss`, for logits [B, C].

    Raises:
        ValueError: shapes, dtypes, devices, T or indices that don't fit.
    """
    if gaps and mixture and weights is not None:
        some, kd_scale = somebody(weights, kd_scale)
        found = bernoulli_distillation(student, teachers, indices, weights, label, rows, temperature, mixture, kd_scale,
                                       task_scale, class_weights)  # fmt: skip
        return replace(found, kd=torch.where(some, found.kd, 0.0))
    if gaps and indices is not None and indices.dim() == 2:
        indices, weights = filled(indices, weights, student.dtype)
    _check(student, teachers, indices, weights, label, rows, temperature, mixture, kd_scale, task_scale, class_weights)
    given: tuple[Any, ...] = (student, teachers.detach(), indices, weights, label, rows, float(temperature), mixture,
                              kd_scale, task_scale, class_weights)  # fmt: skip
    if use_triton(*(x for x in given if isinstance(x, Tensor))):
        return _operator(*given)
    factors = [x for x in (kd_scale, task_scale, class_weights) if x is not None]
    if plain_cpu(student) and not any(x.requires_grad for x in factors):
        return _on_cpu(*given)
    return bernoulli_distillation_reference(*given)


def bernoulli_kd_rows(learner: Tensor, reference: Tensor, temperature: float = 4.0) -> Tensor:
    """Bernoulli KD of one pair per instance.

    Args:
        learner, reference: [B, C] logits of any floating dtype; computed in float32 or wider.
        temperature: T > 0.

    Returns:
        [B] losses; gradients flow into both arguments.
    """
    if learner.shape != reference.shape:
        raise ValueError(f"learner {tuple(learner.shape)} and reference {tuple(reference.shape)} must have one shape")
    given: tuple[Any, ...] = (learner, reference.unsqueeze(1), None, None, None, None, float(temperature), False, None,
                              None, None)  # fmt: skip
    _check(*given)
    if use_triton(learner, reference):
        return _operator(*given).loss
    if plain_cpu(learner) and not reference.requires_grad:
        return _on_cpu(*given).loss
    return bernoulli_kd_reference(learner, reference, temperature)


def _on_cpu(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
    class_weights: Tensor | None,
) -> Distilled:  # fmt: skip
    acc = wide(torch.promote_types(student.dtype, teachers.dtype))
    learns = weights is not None and weights.requires_grad
    if not mixture and not learns and class_weights is None and 0 < student.numel() <= SMALL:
        found = distil(student, teachers, indices, weights, label, rows, temperature, kd_scale, task_scale, acc)
        if found is not None:
            return Distilled(*found)
    settings = (temperature, mixture, acc)
    loss, kd, task = Distil.apply(student, weights, teachers, indices, label, rows, kd_scale, task_scale,
                                  class_weights, settings)  # fmt: skip
    return Distilled(loss, kd, task)


def _operator(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
    class_weights: Tensor | None,
) -> Distilled:  # fmt: skip
    from .jit import bernoulli as jit

    recording = torch.is_grad_enabled()
    loss, kd, task, *_ = jit.distil_bernoulli(
        student, teachers, rows, indices, weights, label, kd_scale, task_scale, temperature, mixture, class_weights,
        recording and student.requires_grad, recording and weights is not None and weights.requires_grad,
        recording and teachers.requires_grad,
    )  # fmt: skip
    return Distilled(loss, kd, task)


def _check(
    student: Tensor, teachers: Tensor, indices: Tensor | None, weights: Tensor | None, label: Tensor | None,
    rows: Tensor | None, temperature: float, mixture: bool, kd_scale: Tensor | None, task_scale: Tensor | None,
    class_weights: Tensor | None,
) -> None:  # fmt: skip
    """Raise ValueError, naming the argument, for what doesn't fit."""
    if student.dim() != 2:
        raise ValueError(f"student: shape {list(student.shape)}; must be [B, C]")
    check_arguments(student, teachers, indices, weights, None, rows, temperature, mixture, kd_scale, task_scale)
    if label is not None and (label.shape != student.shape or label.is_complex() or label.dtype == torch.bool):
        raise ValueError(f"label: {label.dtype} {list(label.shape)}; must be numbers {list(student.shape)}")
    wanted = (2, student.shape[1])
    if class_weights is not None and (class_weights.shape != wanted or not class_weights.is_floating_point()):
        raise ValueError(f"class_weights: {class_weights.dtype} {list(class_weights.shape)}; must be floating "
                         f"{list(wanted)}, of each class's no and yes")  # fmt: skip
