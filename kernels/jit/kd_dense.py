"""KD over many teachers per pixel, for logits [B, C, P] as convolutions leave them: pixels in lanes, classes in a loop.

Neighbouring lanes read neighbouring addresses, and no class count is padded to a power of two. Bytes: (2 + K) B C P e
from memory; the second reading of each block's classes comes from the caches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import choose, device_names, kind_of
from .base import FUSE_MULTIPLY_ADD, acc_type, add_up, aligned, alignment, parts_of, pow2
from .kd_wide import merge, teacher_at


@triton.jit
def dense_teacher(base, weights_ptr, instance, offset, live, teacher_m, c, teacher_c,
                  K: tl.constexpr, WEIGHTS: tl.constexpr, MIXTURE: tl.constexpr, T: tl.constexpr,
                  ACC: tl.constexpr):  # fmt: skip
    """Tempered logits of class c, of one teacher or of the mixture of all K; [PB]."""
    if MIXTURE:
        mixed = tl.zeros(offset.shape, ACC)
        for teacher in range(K):
            if WEIGHTS:
                weight = tl.load(weights_ptr + instance * K + teacher).to(ACC)
            else:
                weight = tl.full([1], 1.0, ACC) / K
            at = base + tl.cast(teacher, tl.int64) * teacher_m + tl.cast(c, tl.int64) * teacher_c + offset
            mixed += tl.load(at, mask=live, other=0.0).to(ACC) * weight
        return mixed / T
    return tl.load(base + tl.cast(c, tl.int64) * teacher_c + offset, mask=live, other=0.0).to(ACC) / T


@triton.jit
def kd_dense(
    student_ptr,  # [B, C, P]
    teacher_ptr,  # [N, M, C, P]
    rows_ptr,  # [B] int64 into N, or unused
    indices_ptr,  # [B, K] int64 into M, or unused
    weights_ptr,  # [B, K], or unused
    label_ptr,  # [B, P] int64, or unused
    kd_scale_ptr,  # [B], or unused
    task_scale_ptr,  # [B], or unused
    loss_ptr,  # [B, S] ACC: sums over blocks of pixels are left to the caller
    kd_ptr,  # [B, S] ACC
    task_ptr,  # [B, S] ACC: sum over the labelled pixels
    grad_ptr,  # [B, C, P] contiguous
    each_ptr,  # [B, K, S] ACC
    reference_ptr,  # [B, C, P] contiguous
    stats_ptr,  # [B, K, P] ACC scratch: log-sum-exp of each teacher; unused with one
    N, M, C, P, student_b, student_c, student_p, teacher_n, teacher_m, teacher_c, teacher_p, ignore,
    T: tl.constexpr, K: tl.constexpr, PB: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, INDICES: tl.constexpr,
    WEIGHTS: tl.constexpr, LABEL: tl.constexpr, KD_SCALE: tl.constexpr, TASK_SCALE: tl.constexpr,
    MIXTURE: tl.constexpr, GRAD: tl.constexpr, EACH: tl.constexpr, REFERENCE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if ALIGN > 1:
        P, student_b, student_c = aligned(P, ALIGN), aligned(student_b, ALIGN), aligned(student_c, ALIGN)
        teacher_n, teacher_m = aligned(teacher_n, ALIGN), aligned(teacher_m, ALIGN)
        teacher_c = aligned(teacher_c, ALIGN)
    instance = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    S = tl.num_programs(1)
    CHOICES: tl.constexpr = 1 if MIXTURE else K
    pixel = (part * PB + tl.arange(0, PB)).to(tl.int64)
    live = pixel < P
    source = student_ptr + instance * student_b + pixel * student_p

    peak, total = tl.full([PB], float("-inf"), ACC), tl.zeros([PB], ACC)
    peak1, total1 = tl.full([PB], float("-inf"), ACC), tl.zeros([PB], ACC)
    for c in range(C):
        x = tl.load(source + tl.cast(c, tl.int64) * student_c, mask=live, other=0.0).to(ACC)
        peak, total = merge(peak, total, x / T)
        if LABEL:
            peak1, total1 = merge(peak1, total1, x)
    log_sum = peak + tl.log(total)
    log_sum1 = peak1 + tl.log(total1)

    scale = tl.full([1], 1.0, ACC) / P
    if KD_SCALE:
        scale = scale * tl.load(kd_scale_ptr + instance).to(ACC)
    mass = tl.zeros([1], ACC)
    single = tl.zeros([PB], ACC)
    kd = tl.zeros([PB], ACC)
    for choice in range(CHOICES):
        base, readable = teacher_at(teacher_ptr, rows_ptr, indices_ptr, instance, choice, N, M, teacher_n, teacher_m,
                                  K, ROWS, INDICES, MIXTURE)  # fmt: skip
        peak, total = tl.full([PB], float("-inf"), ACC), tl.zeros([PB], ACC)
        for c in range(C):
            z = dense_teacher(base, weights_ptr, instance, pixel * teacher_p, live, teacher_m, c, teacher_c,
                              K, WEIGHTS, MIXTURE, T, ACC)  # fmt: skip
            peak, total = merge(peak, total, z)
        single = peak + tl.log(tl.where(readable, total, float("nan")))
        if CHOICES > 1:
            tl.store(stats_ptr + (instance * K + choice) * P + pixel, single, mask=live)
        if MIXTURE:
            mass += 1.0
        elif WEIGHTS:
            mass += tl.load(weights_ptr + instance * K + choice).to(ACC)
        else:
            mass += tl.full([1], 1.0, ACC) / K
        if EACH or REFERENCE:
            own = tl.zeros([PB], ACC)
            for c in range(C):
                log_q = tl.load(source + tl.cast(c, tl.int64) * student_c, mask=live, other=0.0).to(ACC) / T - log_sum
                log_p = dense_teacher(base, weights_ptr, instance, pixel * teacher_p, live, teacher_m, c, teacher_c,
                                      K, WEIGHTS, MIXTURE, T, ACC) - single  # fmt: skip
                p = tl.exp(log_p)
                own += tl.where(p == 0, 0.0, p * (log_p - log_q))
            if EACH:
                each = tl.sum(tl.where(live, own, 0.0), axis=0) * T * T
                tl.store(each_ptr + (instance * K + choice) * S + part + tl.arange(0, 1), each * scale)
            if REFERENCE:
                kd = own
    if CHOICES > 1:
        tl.debug_barrier()

    task_scale = tl.full([1], 1.0, ACC)
    label = pixel * 0
    counted = live & (label != 0)
    if LABEL:
        label = tl.load(label_ptr + instance * P + pixel, mask=live, other=0)
        counted = live & (label != ignore)
        if TASK_SCALE:
            task_scale = tl.full([1], 1.0, ACC) * tl.load(task_scale_ptr + instance).to(ACC)
    gap = tl.zeros([PB], ACC)
    task = tl.zeros([PB], ACC)
    for c in range(C):
        s = tl.load(source + tl.cast(c, tl.int64) * student_c, mask=live, other=0.0).to(ACC)
        log_q = s / T - log_sum
        taught = tl.zeros([PB], ACC)
        for choice in range(CHOICES):
            base, readable = teacher_at(teacher_ptr, rows_ptr, indices_ptr, instance, choice, N, M, teacher_n,
                                      teacher_m, K, ROWS, INDICES, MIXTURE)  # fmt: skip
            if CHOICES == 1:
                log_sum_z = single
            else:
                log_sum_z = tl.load(stats_ptr + (instance * K + choice) * P + pixel, mask=live, other=0.0)
            weight = tl.full([1], 1.0, ACC)
            if not MIXTURE:
                if WEIGHTS:
                    weight = weight * tl.load(weights_ptr + instance * K + choice).to(ACC)
                else:
                    weight = weight / K
            log_p = dense_teacher(base, weights_ptr, instance, pixel * teacher_p, live, teacher_m, c, teacher_c,
                                  K, WEIGHTS, MIXTURE, T, ACC) - log_sum_z  # fmt: skip
            p = tl.exp(log_p)
            here = tl.where(p == 0, 0.0, p * (log_p - log_q))
            gap += weight * here
            taught += weight * p
            if REFERENCE:
                back = tl.where(p == 0, 0.0, here - p * kd) * T * scale
                out = reference_ptr + (instance * C + c) * P + pixel
                tl.store(out, back.to(reference_ptr.dtype.element_ty), mask=live)
        grad = (tl.exp(log_q) * mass - taught) * T * scale
        if LABEL:
            hit = label == c
            task -= tl.where(hit, s - log_sum1, 0.0)
            slope = tl.exp(s - log_sum1) - hit.to(ACC)
            grad += tl.where(counted, slope * task_scale, 0.0)
        if GRAD:
            out = grad_ptr + (instance * C + c) * P + pixel
            tl.store(out, grad.to(grad_ptr.dtype.element_ty), mask=live)
    gap_sum = tl.sum(tl.where(live, gap, 0.0), axis=0) * T * T
    one = tl.arange(0, 1)
    loss = gap_sum * scale
    tl.store(kd_ptr + instance * S + part + one, tl.full([1], 1.0, ACC) * gap_sum / P)
    if LABEL:
        task = tl.where((label >= 0) & (label < C), task, float("nan"))
        task_sum = tl.sum(tl.where(counted, task, 0.0), axis=0)
        loss += task_sum * task_scale
        tl.store(task_ptr + instance * S + part + one, tl.full([1], 1.0, ACC) * task_sum)
    tl.store(loss_ptr + instance * S + part + one, loss)


def launch(student: Tensor, teachers: Tensor, tensors: dict[str, Tensor | None], out: dict[str, Tensor],
           flags: dict[str, Any], temperature: float, ignore: int) -> None:  # fmt: skip
    """Run it: `tensors` and `out` are named as the kernel's pointers."""
    batch, classes, pixels = student.shape
    if student.stride(2) != 1:  # channels last: one copy costs less than reading across the lanes twice
        student = student.contiguous()
    acc, device, k = out["loss"].dtype, student.device, flags["K"]
    choice = choose("kd_dense", pow2(pixels), kind_of(student.dtype, teachers.dtype), device_names(device))
    pb = max(16, min(choice["pixels"], pow2(pixels)))
    s = -(-pixels // pb)
    align = alignment((pixels,), student, teachers)
    parts = parts_of(out, s)
    scratch = batch * k * pixels if k > 1 and not flags["MIXTURE"] else 0
    stats = torch.empty(scratch, dtype=acc, device=device)
    kd_dense[(batch, s)](
        student, teachers, *tensors.values(), *parts.values(), stats, len(teachers), teachers.shape[1], classes, pixels,
        *student.stride(), *teachers.stride(), ignore, T=temperature, PB=pb, ALIGN=align, **flags, ACC=acc_type(acc),
        num_warps=choice["warps"], enable_fp_fusion=FUSE_MULTIPLY_ADD,
    )  # fmt: skip
    add_up(parts, out, flags)
