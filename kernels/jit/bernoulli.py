"""Bernoulli KD over many teachers: no class needs another one, so tiles of rows and classes, each read once.

Bytes for B rows, K chosen teachers, C classes of e bytes: (2 + K) B C e, and the labels'; sums over blocks of classes
are left to the caller where a row is wider than a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import choose, device_names, kind_of
from . import kd
from .base import FUSE_MULTIPLY_ADD, acc_type, add_up, aligned, alignment, on_device, parts_of, pow2

LARGEST = 1024


@triton.jit
def log_1_plus_exp_minus(x):
    """log (1 + e^-x) for x >= 0, to the last bit of small ones."""
    e = tl.exp(-x)
    one = 1.0 + e
    rest = one - 1.0
    return tl.where(rest == 0.0, e, tl.log(one) * (e / tl.where(rest == 0.0, 1.0, rest)))


@triton.jit
def sigma(x):
    """1 / (1 + e^-x), small ones to the last bit."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def bernoulli_divergence(teacher, student):
    """KL of two Bernoulli distributions by their logits; see `kernels/bernoulli.py`."""
    a = -tl.abs(teacher)
    b = tl.where(teacher > 0, -student, student)
    p = sigma(a)
    linear = tl.where(p == 0, 0.0, p * (a - tl.minimum(b, 0.0))) + (1.0 - p) * tl.maximum(b, 0.0)
    return linear + log_1_plus_exp_minus(tl.abs(b)) - log_1_plus_exp_minus(-a)


@triton.jit
def bernoulli(
    student_ptr,  # [B, C]
    teacher_ptr,  # [N, M, C]
    rows_ptr,  # [B] int64 into N, or unused: b
    indices_ptr,  # [B, K] int64 into M, or unused: 0..K-1
    weights_ptr,  # [B, K], or unused: 1/K
    label_ptr,  # [B, C] contiguous, any numbers, or unused
    kd_scale_ptr,  # [B], or unused: 1
    task_scale_ptr,  # [B], or unused: 1
    class_weights_ptr,  # [2, C] contiguous, or unused: 1
    loss_ptr,  # [B, S] ACC: sums over blocks of classes are left to the caller
    kd_ptr,  # [B, S] ACC
    task_ptr,  # [B, S] ACC
    grad_ptr,  # [B, C] contiguous
    each_ptr,  # [B, K, S] ACC: gradient at the weights
    reference_ptr,  # [B, C] contiguous: gradient at the (mixed) teacher
    B,
    N,
    M,
    C,
    student_b,
    student_c,
    teacher_n,
    teacher_m,
    teacher_c,
    T: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    INDICES: tl.constexpr,
    WEIGHTS: tl.constexpr,
    LABEL: tl.constexpr,
    KD_SCALE: tl.constexpr,
    TASK_SCALE: tl.constexpr,
    CLASS_WEIGHTS: tl.constexpr,
    MIXTURE: tl.constexpr,
    GRAD: tl.constexpr,
    EACH: tl.constexpr,
    REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
):
    if ALIGN > 1:
        C, student_b = aligned(C, ALIGN), aligned(student_b, ALIGN)
        teacher_n, teacher_m = aligned(teacher_n, ALIGN), aligned(teacher_m, ALIGN)
    # int64: rows of a cache times its classes pass 2^31
    row = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    part = tl.program_id(1)
    S = tl.num_programs(1)
    lane = (part * CP + tl.arange(0, CP)).to(tl.int64)
    live = row < B
    inside = (lane < C)[None, :]
    there = live[:, None] & inside
    student = tl.load(student_ptr + row[:, None] * student_b + lane[None, :] * student_c, mask=there, other=0.0).to(ACC)
    cool = student / T
    if ROWS:
        at = tl.load(rows_ptr + row, mask=live, other=0)
        known = live & (at >= 0) & (at < N)
    else:
        at = row
        known = live
    scale = tl.full([R], 1.0, ACC)
    if KD_SCALE:
        scale = tl.load(kd_scale_ptr + row, mask=live, other=0.0).to(ACC)
    steps = scale * T / C

    taught = tl.zeros([R, CP], ACC)
    mixed = tl.zeros([R, CP], ACC)
    mass = tl.zeros([R], ACC)
    total = tl.zeros([R], ACC)
    for choice in range(K):
        if INDICES:
            teacher = tl.load(indices_ptr + row * K + choice, mask=live, other=0)
            readable = known & (teacher >= 0) & (teacher < M)
        else:
            teacher = tl.zeros([R], tl.int64) + choice
            readable = known
        if WEIGHTS:
            weight = tl.load(weights_ptr + row * K + choice, mask=live, other=0.0).to(ACC)
        else:
            weight = tl.full([R], 1.0, ACC) / K
        logits = tl.load(
            teacher_ptr + at[:, None] * teacher_n + teacher[:, None] * teacher_m + lane[None, :] * teacher_c,
            mask=readable[:, None] & inside,
            other=0.0,
        ).to(ACC)
        # an index out of range makes its row's loss NaN, and nothing was read
        logits = tl.where(readable[:, None], logits, float("nan"))
        if MIXTURE:
            mixed += logits * weight[:, None]
        else:
            logits = logits / T
            gap = tl.where(there, bernoulli_divergence(logits, cool), 0.0)
            own = tl.sum(gap, axis=1) * (T * T) / C
            if EACH:
                tl.store(each_ptr + (row * K + choice) * S + part, own * scale, mask=live)
            if REFERENCE:
                steep = sigma(logits) * sigma(-logits)
                back = tl.where(steep == 0, 0.0, steep * (logits - cool)) * steps[:, None]
                tl.store(reference_ptr + row[:, None] * C + lane[None, :],
                         back.to(reference_ptr.dtype.element_ty), mask=there)  # fmt: skip
            total += weight * own
            taught += weight[:, None] * sigma(logits)
            mass += weight
    if MIXTURE:
        mixed = mixed / T
        gap = tl.where(there, bernoulli_divergence(mixed, cool), 0.0)
        total = tl.sum(gap, axis=1) * (T * T) / C
        taught = sigma(mixed)
        mass += 1.0
        if REFERENCE:
            steep = taught * sigma(-mixed)
            back = tl.where(steep == 0, 0.0, steep * (mixed - cool)) * steps[:, None]
            tl.store(reference_ptr + row[:, None] * C + lane[None, :],
                     back.to(reference_ptr.dtype.element_ty), mask=there)  # fmt: skip

    loss = total * scale
    grad = (sigma(cool) * mass[:, None] - taught) * steps[:, None]
    if LABEL:
        y = tl.load(label_ptr + row[:, None] * C + lane[None, :], mask=there, other=-1).to(ACC)
        counted = there & (y >= 0)
        y = tl.where(y > 1, float("nan"), y)
        no, yes = 1.0 - y, y
        if CLASS_WEIGHTS:
            no *= tl.load(class_weights_ptr + lane, mask=lane < C, other=0.0).to(ACC)[None, :]
            yes *= tl.load(class_weights_ptr + C + lane, mask=lane < C, other=0.0).to(ACC)[None, :]
        costs = (no + yes) * log_1_plus_exp_minus(tl.abs(student))
        costs += tl.where(no == 0, 0.0, no * tl.maximum(student, 0.0))
        costs += tl.where(yes == 0, 0.0, yes * tl.maximum(-student, 0.0))
        task = tl.sum(tl.where(counted, costs, 0.0), axis=1)
        weight = tl.full([R], 1.0, ACC)
        if TASK_SCALE:
            weight = tl.load(task_scale_ptr + row, mask=live, other=0.0).to(ACC)
        loss += task * weight
        slope = no * sigma(student) - yes * sigma(-student)
        grad += tl.where(counted, slope * weight[:, None], 0.0)
        tl.store(task_ptr + row * S + part, task, mask=live)
    tl.store(loss_ptr + row * S + part, loss, mask=live)
    tl.store(kd_ptr + row * S + part, total, mask=live)
    if GRAD:
        tl.store(grad_ptr + row[:, None] * C + lane[None, :], grad.to(grad_ptr.dtype.element_ty), mask=there)


def tiles(classes: int, kind: str, where: tuple[str, ...]) -> tuple[int, int, int]:
    """(rows a tile, classes a tile, warps)."""
    cp = max(2, min(LARGEST, pow2(classes)))
    choice = choose("bernoulli", cp, kind, where)
    return choice["rows"], cp, choice["warps"]


def launch(student: Tensor, teachers: Tensor, tensors: dict[str, Tensor], out: dict[str, Tensor],
           flags: dict[str, Any], temperature: float) -> None:  # fmt: skip
    """Run it: `tensors` and `out` are named as the kernel's pointers."""
    batch, classes = student.shape
    r, cp, warps = tiles(classes, kind_of(student.dtype, teachers.dtype), device_names(student.device))
    s = -(-classes // cp)
    parts = parts_of(out, s)
    align = alignment((classes,), student, teachers)
    bernoulli[(-(-batch // r), s)](
        student, teachers, *tensors.values(), *parts.values(), batch, len(teachers), teachers.shape[1], classes,
        *student.stride(), *teachers.stride(), T=temperature, R=r, CP=cp, ALIGN=align, **flags,
        ACC=acc_type(out["loss"].dtype), num_warps=warps, enable_fp_fusion=FUSE_MULTIPLY_ADD,
    )  # fmt: skip
    add_up(parts, out, flags)


@torch.library.custom_op("mstdistill::distil_bernoulli", mutates_args=())
def distil_bernoulli(
    student: Tensor,
    teachers: Tensor,
    rows: Tensor | None,
    indices: Tensor | None,
    weights: Tensor | None,
    label: Tensor | None,
    kd_scale: Tensor | None,
    task_scale: Tensor | None,
    temperature: float,
    mixture: bool,
    class_weights: Tensor | None,
    student_grad: bool,
    weights_grad: bool,
    reference_grad: bool,
) -> kd.Outputs:
    """As `kd.distil`, for student [B, C], teachers [N, M, C], labels [B, C]. See `mstdistill.kernels.bernoulli_kd`."""
    shapes = kd.shapes_of(student, teachers, indices, mixture, (student_grad, weights_grad, reference_grad))
    out = {name: torch.empty(shape, dtype=dtype, device=student.device) for name, (shape, dtype) in shapes.items()}
    if label is None:
        out["task"].zero_()
    if student.numel() == 0:
        for name in ("loss", "kd", "task", "each"):
            out[name].zero_()
        return tuple(out.values())  # type: ignore[return-value]
    given = {"rows": rows, "indices": indices, "weights": weights, "label": label, "kd_scale": kd_scale,
             "task_scale": task_scale, "class_weights": class_weights}  # fmt: skip
    flags: dict[str, Any] = {name.upper(): x is not None for name, x in given.items()}
    flags |= {"K": teachers.shape[1] if indices is None else indices.shape[1], "MIXTURE": mixture,
              "GRAD": student_grad, "EACH": out["each"].numel() > 0,
              "REFERENCE": out["reference"].numel() > 0}  # fmt: skip
    tensors = {name: student if x is None else x.contiguous() for name, x in given.items()}
    with on_device(student):
        launch(student, teachers, tensors, out, flags, temperature)
    return tuple(out.values())  # type: ignore[return-value]


@distil_bernoulli.register_fake
def _(
    student: Tensor,
    teachers: Tensor,
    rows: Tensor | None,
    indices: Tensor | None,
    weights: Tensor | None,
    label: Tensor | None,
    kd_scale: Tensor | None,
    task_scale: Tensor | None,
    temperature: float,
    mixture: bool,
    class_weights: Tensor | None,
    student_grad: bool,
    weights_grad: bool,
    reference_grad: bool,
) -> kd.Outputs:
    shapes = kd.shapes_of(student, teachers, indices, mixture, (student_grad, weights_grad, reference_grad))
    return tuple(student.new_empty(shape, dtype=dtype) for shape, dtype in shapes.values())  # type: ignore[return-value]


# the same arguments in the same places, so the same way back
distil_bernoulli.register_autograd(kd.backward, setup_context=kd.setup)
