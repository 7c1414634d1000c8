"""KD over many teachers for many classes: statistics first, then loss and gradient, over slices of the classes.

Two forms of the same sums. `kd_wide` takes a row per block and reads it twice, the second time from the L2 cache where
the rows in flight fit. With few rows, `kd_slices` and then `kd_wide` share each row among many blocks, in two launches.
Bytes: (3 + 2K) B C e at most, (2 + K) B C e where the second reading hits the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import choose, device_names, kind_of
from .base import FUSE_MULTIPLY_ADD, acc_type, add_up, aligned, alignment, parts_of, pow2

# Slices are worth their second launch where fewer rows than this leave multiprocessors idle.
FEW_ROWS = 256


@triton.jit
def chunk_of(
    base, weights_ptr, row, lane, start, stop, teacher_m, stride_c,
    K: tl.constexpr, WEIGHTS: tl.constexpr, MIXTURE: tl.constexpr, T: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Tempered logits of one teacher, or of the mixture of all K, for classes start + lane; -inf outside."""
    column = start + lane
    inside = column < stop
    offset = column.to(tl.int64) * stride_c
    if MIXTURE:
        mixed = tl.zeros(lane.shape, ACC)
        for teacher in range(K):
            if WEIGHTS:
                weight = tl.load(weights_ptr + row * K + teacher).to(ACC)
            else:
                weight = tl.full([1], 1.0, ACC) / K
            mixed += (
                tl.load(base + tl.cast(teacher, tl.int64) * teacher_m + offset, mask=inside, other=0.0).to(ACC) * weight
            )
        return tl.where(inside, mixed, float("-inf")) / T
    return tl.load(base + offset, mask=inside, other=float("-inf")).to(ACC) / T


@triton.jit
def merge(peak, total, x):
    """Running (maximum, sum of exp) per lane with a chunk x; nothing but -inf so far counts as a sum of 0."""
    higher = tl.where((x > peak) | (x != x), x, peak)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(peak - level) + tl.exp(x - level)


@triton.jit
def across(peak, total):
    """(maximum, sum of exp) of all lanes; a NaN stays one in the sum."""
    highest = tl.max(tl.where(peak != peak, float("-inf"), peak), axis=0)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    return highest, tl.sum(total * tl.exp(peak - level), axis=0)


@triton.jit
def teacher_at(teacher_ptr, rows_ptr, indices_ptr, row, choice, N, M, teacher_n, teacher_m,
               K: tl.constexpr, ROWS: tl.constexpr, INDICES: tl.constexpr, MIXTURE: tl.constexpr):  # fmt: skip
    """(pointer to a teacher's logits, whether it exists); one that doesn't points to row 0, teacher 0."""
    at = row
    readable = at >= 0
    if ROWS:
        at = tl.load(rows_ptr + row)
        readable = (at >= 0) & (at < N)
    teacher = at * 0
    if not MIXTURE:
        teacher = at * 0 + choice
        if INDICES:
            teacher = tl.load(indices_ptr + row * K + choice)
            readable = readable & (teacher >= 0) & (teacher < M)
    return (
        teacher_ptr + tl.where(readable, at, 0) * teacher_n + tl.where(readable, teacher, 0) * teacher_m,
        readable,
    )


@triton.jit
def kd_slices(
    student_ptr, teacher_ptr, rows_ptr, indices_ptr, weights_ptr,
    stats_ptr,  # [B, 2 + CHOICES, S, 2] ACC: (maximum, sum) of student/T, student, teachers/T
    N, M, C, student_b, student_c, teacher_n, teacher_m, teacher_c, slice_width, S,
    T: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, INDICES: tl.constexpr,
    WEIGHTS: tl.constexpr, MIXTURE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Statistics of one slice of one row: student at T, student at 1, each teacher."""
    if ALIGN > 1:
        C, slice_width = aligned(C, ALIGN), aligned(slice_width, ALIGN)
        student_b, teacher_n = aligned(student_b, ALIGN), aligned(teacher_n, ALIGN)
        teacher_m = aligned(teacher_m, ALIGN)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * slice_width
    stop = tl.minimum(begin + slice_width, C)
    lane = tl.arange(0, BC)
    CHOICES: tl.constexpr = 1 if MIXTURE else K
    peak, total = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
    peak1, total1 = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
    source = student_ptr + row * student_b
    for start in range(begin, stop, BC):
        x = chunk_of(source, weights_ptr, row, lane, start, stop, 0, student_c, 1, False, False, 1.0, ACC)
        peak1, total1 = merge(peak1, total1, x)
        peak, total = merge(peak, total, x / T)
    out = stats_ptr + (row * (2 + CHOICES) * S + part) * 2
    top, whole = across(peak, total)
    tl.store(out, top)
    tl.store(out + 1, whole)
    top, whole = across(peak1, total1)
    tl.store(out + 2 * S, top)
    tl.store(out + 2 * S + 1, whole)
    for choice in range(CHOICES):
        base, readable = teacher_at(teacher_ptr, rows_ptr, indices_ptr, row, choice, N, M, teacher_n, teacher_m,
                                    K, ROWS, INDICES, MIXTURE)  # fmt: skip
        peak, total = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
        for start in range(begin, stop, BC):
            z = chunk_of(base, weights_ptr, row, lane, start, stop, teacher_m, teacher_c,
                         K, WEIGHTS, MIXTURE, T, ACC)  # fmt: skip
            peak, total = merge(peak, total, z)
        top, whole = across(peak, total)
        tl.store(out + 2 * S * (2 + choice), top)
        tl.store(out + 2 * S * (2 + choice) + 1, tl.where(readable, whole, float("nan")))


@triton.jit
def combined(stats_ptr, S, SP: tl.constexpr, ACC: tl.constexpr):
    """log-sum-exp from the S slices' statistics."""
    part = tl.arange(0, SP)
    known = part < S
    peaks = tl.load(stats_ptr + 2 * part, mask=known, other=float("-inf")).to(ACC)
    sums = tl.load(stats_ptr + 2 * part + 1, mask=known, other=0.0).to(ACC)
    peak = tl.max(peaks, axis=0)
    level = tl.where(peak == float("-inf"), 0.0, peak)
    return peak + tl.log(tl.sum(sums * tl.exp(peaks - level), axis=0))


@triton.jit
def kd_wide(
    student_ptr,  # [B, C]
    teacher_ptr,  # [N, M, C]
    rows_ptr,  # [B] int64 into N, or unused
    indices_ptr,  # [B, K] int64 into M, or unused
    weights_ptr,  # [B, K], or unused
    label_ptr,  # [B] int64, or unused
    kd_scale_ptr,  # [B], or unused
    task_scale_ptr,  # [B], or unused
    loss_ptr,  # [B, S] ACC: sums over slices are left to the caller
    kd_ptr,  # [B, S] ACC
    task_ptr,  # [B, S] ACC
    grad_ptr,  # [B, C] contiguous
    each_ptr,  # [B, K, S] ACC
    reference_ptr,  # [B, C] contiguous
    stats_ptr,  # [B, 2 + CHOICES, S, 2] ACC from `kd_slices`; with S = 1 scratch of the block's own
    N, M, C, student_b, student_c, teacher_n, teacher_m, teacher_c, ignore, slice_width, S,
    T: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ALIGN: tl.constexpr, SP: tl.constexpr, SLICED: tl.constexpr,
    ROWS: tl.constexpr, INDICES: tl.constexpr, WEIGHTS: tl.constexpr, LABEL: tl.constexpr, KD_SCALE: tl.constexpr,
    TASK_SCALE: tl.constexpr, MIXTURE: tl.constexpr, GRAD: tl.constexpr, EACH: tl.constexpr, REFERENCE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of one slice of one row."""
    if ALIGN > 1:
        C, slice_width = aligned(C, ALIGN), aligned(slice_width, ALIGN)
        student_b, teacher_n = aligned(student_b, ALIGN), aligned(teacher_n, ALIGN)
        teacher_m = aligned(teacher_m, ALIGN)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * slice_width
    stop = tl.minimum(begin + slice_width, C)
    lane = tl.arange(0, BC)
    CHOICES: tl.constexpr = 1 if MIXTURE else K
    stats = stats_ptr + row * (2 + CHOICES) * S * 2
    source = student_ptr + row * student_b
    if SLICED:
        log_sum = combined(stats, S, SP, ACC)
        log_sum1 = combined(stats + 2 * S, S, SP, ACC)
    else:
        peak, total = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
        peak1, total1 = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
        for start in range(begin, stop, BC):
            x = chunk_of(source, weights_ptr, row, lane, start, stop, 0, student_c, 1, False, False, 1.0, ACC)
            if LABEL:
                peak1, total1 = merge(peak1, total1, x)
            peak, total = merge(peak, total, x / T)
        top, whole = across(peak, total)
        log_sum = top + tl.log(whole)
        top, whole = across(peak1, total1)
        log_sum1 = top + tl.log(whole)

    scale = tl.full([], 1.0, ACC)
    if KD_SCALE:
        scale = tl.load(kd_scale_ptr + row).to(ACC)
    mass = tl.full([], 0.0, ACC)
    single = tl.full([], 0.0, ACC)  # the only teacher's log-sum-exp
    for choice in range(CHOICES):
        base, readable = teacher_at(teacher_ptr, rows_ptr, indices_ptr, row, choice, N, M, teacher_n, teacher_m,
                                    K, ROWS, INDICES, MIXTURE)  # fmt: skip
        if SLICED:
            log_sum_z = combined(stats + 2 * S * (2 + choice), S, SP, ACC)
        else:
            peak, total = tl.full([BC], float("-inf"), ACC), tl.zeros([BC], ACC)
            for start in range(begin, stop, BC):
                z = chunk_of(base, weights_ptr, row, lane, start, stop, teacher_m, teacher_c,
                             K, WEIGHTS, MIXTURE, T, ACC)  # fmt: skip
                peak, total = merge(peak, total, z)
            top, whole = across(peak, total)
            log_sum_z = top + tl.log(tl.where(readable, whole, float("nan")))
            if CHOICES > 1:
                tl.store(stats + 2 * (2 + choice), log_sum_z)
        single = log_sum_z
        if MIXTURE:
            mass += 1.0
        elif WEIGHTS:
            mass += tl.load(weights_ptr + row * K + choice).to(ACC)
        else:
            mass += tl.full([], 1.0, ACC) / K
        if EACH:
            own = tl.full([], 0.0, ACC)
            for start in range(begin, stop, BC):
                log_q = chunk_of(source, weights_ptr, row, lane, start, stop, 0, student_c,
                                 1, False, False, T, ACC) - log_sum  # fmt: skip
                log_p = chunk_of(base, weights_ptr, row, lane, start, stop, teacher_m, teacher_c,
                                 K, WEIGHTS, MIXTURE, T, ACC) - log_sum_z  # fmt: skip
                p = tl.exp(log_p)
                own += tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=0)
            tl.store(each_ptr + (row * K + choice) * S + part, own * T * T * scale)
    if CHOICES > 1 and not SLICED:
        tl.debug_barrier()  # the block's own stores above are read below by other threads of it

    task_scale = tl.full([], 1.0, ACC)
    label = row * 0
    counted = label != 0
    if LABEL:
        label = tl.load(label_ptr + row)
        counted = label != ignore
        if TASK_SCALE:
            task_scale = tl.load(task_scale_ptr + row).to(ACC)
    kd, task = tl.full([], 0.0, ACC), tl.full([], 0.0, ACC)
    for start in range(begin, stop, BC):
        column = start + lane
        inside = column < stop
        s = chunk_of(source, weights_ptr, row, lane, start, stop, 0, student_c, 1, False, False, 1.0, ACC)
        log_q = s / T - log_sum
        taught = tl.zeros([BC], ACC)
        for choice in range(CHOICES):
            base, readable = teacher_at(teacher_ptr, rows_ptr, indices_ptr, row, choice, N, M, teacher_n, teacher_m,
                                        K, ROWS, INDICES, MIXTURE)  # fmt: skip
            if CHOICES == 1:
                log_sum_z = single
            elif SLICED:
                log_sum_z = combined(stats + 2 * S * (2 + choice), S, SP, ACC)
            else:
                log_sum_z = tl.load(stats + 2 * (2 + choice))
            weight = tl.full([], 1.0, ACC)
            if not MIXTURE:
                if WEIGHTS:
                    weight = tl.load(weights_ptr + row * K + choice).to(ACC)
                else:
                    weight = weight / K
            log_p = chunk_of(base, weights_ptr, row, lane, start, stop, teacher_m, teacher_c,
                             K, WEIGHTS, MIXTURE, T, ACC) - log_sum_z  # fmt: skip
            p = tl.exp(log_p)
            kd += weight * tl.sum(tl.where(p == 0, 0.0, p * (log_p - log_q)), axis=0)
            taught += weight * p
        grad = (tl.exp(log_q) * mass - taught) * T * scale
        if LABEL:
            hit = inside & (column == label)
            task -= tl.sum(tl.where(hit, s - log_sum1, 0.0), axis=0)
            slope = tl.exp(s - log_sum1) - hit.to(ACC)
            grad += tl.where(counted, slope * task_scale, 0.0)
        if GRAD:
            tl.store(grad_ptr + row * C + column, grad.to(grad_ptr.dtype.element_ty), mask=inside)
    if LABEL:
        task = tl.where((label >= 0) & (label < C), task, float("nan"))
        task = tl.where(counted, task, 0.0)
        tl.store(task_ptr + row * S + part, task)
    kd = kd * T * T
    tl.store(kd_ptr + row * S + part, kd)
    tl.store(loss_ptr + row * S + part, kd * scale + task * task_scale)


@triton.jit
def kd_wide_reference(
    student_ptr, teacher_ptr, rows_ptr, indices_ptr, weights_ptr, kd_scale_ptr,
    kd_ptr,  # [B] ACC: whole KD of each row
    stats_ptr,  # [B, 3, S, 2] ACC from `kd_slices`
    reference_ptr,  # [B, C] contiguous
    N, M, C, student_b, student_c, teacher_n, teacher_m, teacher_c, slice_width, S,
    T: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ALIGN: tl.constexpr, SP: tl.constexpr,
    ROWS: tl.constexpr, INDICES: tl.constexpr,
    WEIGHTS: tl.constexpr, MIXTURE: tl.constexpr, KD_SCALE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient at the one (mixed) teacher; needs the row's whole KD, so it comes last."""
    if ALIGN > 1:
        C, slice_width = aligned(C, ALIGN), aligned(slice_width, ALIGN)
        student_b, teacher_n = aligned(student_b, ALIGN), aligned(teacher_n, ALIGN)
        teacher_m = aligned(teacher_m, ALIGN)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * slice_width
    stop = tl.minimum(begin + slice_width, C)
    lane = tl.arange(0, BC)
    stats = stats_ptr + row * 3 * S * 2
    log_sum = combined(stats, S, SP, ACC)
    log_sum_z = combined(stats + 4 * S, S, SP, ACC)
    base, _ = teacher_at(teacher_ptr, rows_ptr, indices_ptr, row, 0, N, M, teacher_n, teacher_m,
                                K, ROWS, INDICES, MIXTURE)  # fmt: skip
    own = tl.load(kd_ptr + row) / T / T
    scale = tl.full([], 1.0, ACC)
    if KD_SCALE:
        scale = tl.load(kd_scale_ptr + row).to(ACC)
    for start in range(begin, stop, BC):
        column = start + lane
        log_q = chunk_of(student_ptr + row * student_b, weights_ptr, row, lane, start, stop, 0, student_c,
                         1, False, False, T, ACC) - log_sum  # fmt: skip
        log_p = chunk_of(base, weights_ptr, row, lane, start, stop, teacher_m, teacher_c,
                         K, WEIGHTS, MIXTURE, T, ACC) - log_sum_z  # fmt: skip
        p = tl.exp(log_p)
        back = tl.where(p == 0, 0.0, p * (log_p - log_q - own)) * T * scale
        tl.store(reference_ptr + row * C + column, back.to(reference_ptr.dtype.element_ty), mask=column < stop)


def slices(batch: int, classes: int, block: int) -> tuple[int, int]:
    """(slices a row, classes a slice: multiples of the block)."""
    if batch >= FEW_ROWS:
        return 1, classes
    wanted = min(-(-classes // block), -(-2 * FEW_ROWS // max(1, batch)))
    width = -(-classes // wanted // block) * block if wanted else classes
    return -(-classes // width), width


def launch(student: Tensor, teachers: Tensor, tensors: dict[str, Tensor | None], out: dict[str, Tensor],
           flags: dict[str, Any], temperature: float, ignore: int) -> None:  # fmt: skip
    """Run it: `tensors` and `out` are named as the kernel's pointers."""
    batch, classes = student.shape
    acc, device, k = out["loss"].dtype, student.device, flags["K"]
    needs_stats = flags["REFERENCE"]
    choice = choose("kd_wide", pow2(classes), kind_of(student.dtype, teachers.dtype), device_names(device))
    s, width = slices(batch, classes, choice["block"])
    choices = 1 if flags["MIXTURE"] else k
    sliced = s > 1 or needs_stats
    stats = torch.empty(batch, 2 + choices, s, 2, dtype=acc, device=device)
    sp = triton.next_power_of_2(s)
    where = {"ROWS": flags["ROWS"], "INDICES": flags["INDICES"], "WEIGHTS": flags["WEIGHTS"],
             "MIXTURE": flags["MIXTURE"], "K": k}  # fmt: skip
    # slices are multiples of the block; the whole row's width is the classes
    align = alignment((classes, width), student, teachers)
    common = {"T": temperature, "ALIGN": align, "BC": min(choice["block"], pow2(classes)), "ACC": acc_type(acc),
              "num_warps": choice["warps"], "enable_fp_fusion": FUSE_MULTIPLY_ADD}  # fmt: skip
    sizes = (len(teachers), teachers.shape[1], classes, *student.stride(), *teachers.stride())
    heads = [tensors[name] for name in ("rows", "indices", "weights")]
    if sliced:
        kd_slices[(batch, s)](student, teachers, *heads, stats, *sizes, width, s, **where, **common)
    parts = parts_of(out, s)
    kd_wide[(batch, s)](
        student, teachers, *tensors.values(), *parts.values(), stats, *sizes, ignore, width, s,
        SP=sp, SLICED=sliced, **{**flags, "REFERENCE": False}, **common,
    )  # fmt: skip
    add_up(parts, out, flags)
    if flags["REFERENCE"]:
        kd_wide_reference[(batch, s)](
            student, teachers, *heads, tensors["kd_scale"], out["kd"], stats, out["reference"], *sizes, width, s,
            SP=sp, KD_SCALE=flags["KD_SCALE"], **where, **common,
        )  # fmt: skip
