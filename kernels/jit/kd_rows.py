"""KD over many teachers where a row of classes fits in registers: everything in one pass over student and teachers.

Bytes for B rows, K chosen teachers, C classes of e bytes: (2 + K) B C e, each logit read and the gradient written once.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..tiles import choose, device_names, kind_of
from .base import FUSE_MULTIPLY_ADD, acc_type, aligned, alignment, pow2

LARGEST = 4096


@triton.jit
def log_softmax_of(x):
    """Along the classes of a tile [R, CP]."""
    x = x - tl.max(x, axis=1)[:, None]
    return x - tl.log(tl.sum(tl.exp(x), axis=1))[:, None]


@triton.jit
def kd_rows(
    student_ptr,  # [B, C]
    teacher_ptr,  # [N, M, C]
    rows_ptr,  # [B] int64 into N, or unused: b
    indices_ptr,  # [B, K] int64 into M, or unused: 0..K-1
    weights_ptr,  # [B, K], or unused: 1/K
    label_ptr,  # [B] int64, or unused
    kd_scale_ptr,  # [B], or unused: 1
    task_scale_ptr,  # [B], or unused: 1
    loss_ptr,  # [B] ACC
    kd_ptr,  # [B] ACC
    task_ptr,  # [B] ACC
    grad_ptr,  # [B, C] contiguous
    each_ptr,  # [B, K] ACC: gradient at the weights
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
    ignore,
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
    lane = tl.arange(0, CP)
    live = row < B
    inside = (lane < C)[None, :]
    there = live[:, None] & inside
    student = tl.load(
        student_ptr + row[:, None] * student_b + lane[None, :].to(tl.int64) * student_c, mask=there, other=float("-inf")
    ).to(ACC)
    student = tl.where(live[:, None], student, 0.0)
    log_q = log_softmax_of(student / T)

    if ROWS:
        at = tl.load(rows_ptr + row, mask=live, other=0)
        known = live & (at >= 0) & (at < N)
    else:
        at = row
        known = live
    scale = tl.full([R], 1.0, ACC)
    if KD_SCALE:
        scale = tl.load(kd_scale_ptr + row, mask=live, other=0.0).to(ACC)

    taught = tl.zeros([R, CP], ACC)
    mixed = tl.zeros([R, CP], ACC)
    mass = tl.zeros([R], ACC)
    kd = tl.zeros([R], ACC)
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
            teacher_ptr
            + at[:, None] * teacher_n
            + teacher[:, None] * teacher_m
            + lane[None, :].to(tl.int64) * teacher_c,
            mask=readable[:, None] & inside,
            other=float("-inf"),
        ).to(ACC)
        if MIXTURE:
            mixed += tl.where(inside, logits, 0.0) * weight[:, None]
        else:
            # an index out of range leaves a row of -inf: its loss is NaN, and nothing was read
            log_p = log_softmax_of(logits / T)
            p = tl.exp(log_p)
            gap = tl.where(p == 0, 0.0, p * (log_p - log_q))
            each = tl.sum(gap, axis=1) * T * T
            if EACH:
                tl.store(each_ptr + row * K + choice, each * scale, mask=live)
            if REFERENCE:
                back = (gap - p * (each / T / T)[:, None]) * T * scale[:, None]
                out = reference_ptr + row[:, None] * C + lane[None, :]
                tl.store(out, tl.where(p == 0, 0.0, back).to(reference_ptr.dtype.element_ty), mask=there)
            kd += weight * each
            taught += weight[:, None] * p
            mass += weight
    if MIXTURE:
        log_p = log_softmax_of(tl.where(inside, mixed, float("-inf")) / T)
        p = tl.exp(log_p)
        gap = tl.where(p == 0, 0.0, p * (log_p - log_q))
        kd = tl.sum(gap, axis=1) * T * T
        taught = p
        mass += 1.0
        if REFERENCE:
            back = (gap - p * (kd / T / T)[:, None]) * T * scale[:, None]
            out = reference_ptr + row[:, None] * C + lane[None, :]
            tl.store(out, tl.where(p == 0, 0.0, back).to(reference_ptr.dtype.element_ty), mask=there)

    loss = kd * scale
    grad = (tl.exp(log_q) * mass[:, None] - taught) * T * scale[:, None]
    if LABEL:
        label = tl.load(label_ptr + row, mask=live, other=0)
        counted = label != ignore
        log_s = log_softmax_of(student)
        hit = lane[None, :] == label[:, None]
        right = tl.sum(tl.where(hit & inside, log_s, 0.0), axis=1)
        right = tl.where((label >= 0) & (label < C), right, float("nan"))
        task = tl.where(counted, -right, 0.0)
        weight = tl.full([R], 1.0, ACC)
        if TASK_SCALE:
            weight = tl.load(task_scale_ptr + row, mask=live, other=0.0).to(ACC)
        loss += task * weight
        slope = tl.exp(log_s) - hit.to(ACC)
        grad += tl.where(counted[:, None], slope * weight[:, None], 0.0)
        tl.store(task_ptr + row, task, mask=live)
    tl.store(loss_ptr + row, loss, mask=live)
    tl.store(kd_ptr + row, kd, mask=live)
    if GRAD:
        out = grad_ptr + row[:, None] * C + lane[None, :]
        tl.store(out, grad.to(grad_ptr.dtype.element_ty), mask=there)


def tiles(classes: int, kind: str, where: tuple[str, ...]) -> tuple[int, int, int]:
    """(rows a tile, padded classes, warps)."""
    cp = max(2, pow2(classes))
    choice = choose("kd_rows", cp, kind, where)
    return choice["rows"], cp, choice["warps"]


def launch(student: Tensor, teachers: Tensor, tensors: dict[str, Tensor | None], out: dict[str, Tensor],
           flags: dict[str, Any], temperature: float, ignore: int) -> None:  # fmt: skip
    """Run it: `tensors` and `out` are named as the kernel's pointers."""
    batch, classes = student.shape
    r, cp, warps = tiles(classes, kind_of(student.dtype, teachers.dtype), device_names(student.device))
    align = alignment((classes,), student, teachers)
    kd_rows[(-(-batch // r),)](
        student, teachers, *tensors.values(), *out.values(), batch, len(teachers), teachers.shape[1], classes,
        *student.stride(), *teachers.stride(), ignore, T=temperature, R=r, CP=cp, ALIGN=align, **flags,
        ACC=acc_type(out["loss"].dtype), num_warps=warps, enable_fp_fusion=FUSE_MULTIPLY_ADD,
    )  # fmt: skip
