"""Routing, for usual batches in one launch each way; the equations are in `mstdistill.kernels.router`.

Bytes, for B x M logits of e bytes: forward reads B*M*e, writes B*M*4 log-probabilities and B*k*8 indices; backward
reads B*M*4 (twice that with an outer gradient) and writes B*M*e. Column sums take two stages, always in one order: each
block leaves (maximum, sum) per column in scratch; a lone block goes on to add them up itself, several leave that to a
second, tiny launch. (A ticket for the last of several blocks would save it, at the price of a counter that must be zero
in every stream and captured graph, and of an order between blocks that not every GPU's barrier promises.)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import BALANCES, LOWEST
from ..launch import wide
from ..tiles import choose, device_names
from .base import FUSE_MULTIPLY_ADD, acc_type, aligned, alignment, no_second_derivative, on_device, pow2


@triton.jit
def route_forward(
    logits_ptr,  # [B, M] any floating type
    weight_ptr,  # [B] or unused
    seen_ptr,  # [B, M] uint8, contiguous: whether a teacher can see an instance; None: each sees all
    log_probs_ptr,  # [B, M] ACC
    indices_ptr,  # [B, K] int64
    peak_ptr,  # [blocks, MP] ACC scratch: maximum per column
    sum_ptr,  # [blocks, MP] ACC scratch: sum of exp(a - maximum)
    count_ptr,  # [blocks, MP] int32 scratch
    part_ptr,  # [blocks] ACC scratch: sum of the weights
    log_sums_ptr,  # [M] ACC
    counts_ptr,  # [M] int64
    loss_ptr,  # [] ACC
    B,
    M,
    stride_b,
    stride_m,
    K: tl.constexpr,
    R: tl.constexpr,
    MP: tl.constexpr,
    TILES: tl.constexpr,
    ALONE: tl.constexpr,
    ALIGN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MASKED: tl.constexpr,
    MODE: tl.constexpr,
    LOWEST: tl.constexpr,
    ACC: tl.constexpr,
):
    if ALIGN > 1:
        M, stride_b = aligned(M, ALIGN), aligned(stride_b, ALIGN)
    block = tl.program_id(0)
    lane = tl.arange(0, MP)
    inside = lane < M
    peak = tl.full([MP], LOWEST, ACC)
    total = tl.zeros([MP], ACC)
    count = tl.zeros([MP], tl.int32)
    mass = tl.zeros([R], ACC)
    for tile in range(TILES):
        row = (block * TILES + tile) * R + tl.arange(0, R).to(tl.int64)
        live = row < B
        there = live[:, None] & inside[None, :]
        logits = tl.load(
            logits_ptr + row[:, None] * stride_b + lane[None, :].to(tl.int64) * stride_m,
            mask=there,
            other=float("-inf"),
        ).to(ACC)
        logits = tl.where(live[:, None], logits, 0.0)
        free = tl.broadcast_to(inside[None, :], [R, MP])
        if MASKED:
            free = tl.load(seen_ptr + row[:, None] * M + lane[None, :], mask=there, other=0) != 0
            some = tl.max(free.to(tl.int32), axis=1) > 0  # a row that nobody sees must not become NaN on the way
            logits = tl.where(some[:, None], tl.where(free, logits, float("-inf")), 0.0)
        shifted = logits - tl.max(logits, axis=1)[:, None]
        log_p = shifted - tl.log(tl.sum(tl.exp(shifted), axis=1))[:, None]
        if MASKED:
            log_p = tl.where(free, log_p, LOWEST)
        tl.store(log_probs_ptr + row[:, None] * M + lane[None, :], log_p, mask=there)

        if WEIGHTED:
            weight = tl.load(weight_ptr + row, mask=live, other=0.0).to(ACC)
        else:
            weight = tl.where(live, tl.full([R], 1.0, ACC), 0.0)
        counted = weight > 0
        mass += weight

        # a row of NaN counts as all equal, so that an index stays an index
        key = tl.where(log_p != log_p, 0.0, log_p)
        for choice in range(K):
            best = tl.max(tl.where(free, key, float("-inf")), axis=1)
            candidate = free & (key == best[:, None])
            chosen = tl.min(tl.where(candidate, lane[None, :], MP), axis=1)
            if MASKED:  # nobody left: -1, which hits no lane
                chosen = tl.where(chosen < MP, chosen, -1)
            tl.store(indices_ptr + row * K + choice, chosen.to(tl.int64), mask=live)
            hit = lane[None, :] == chosen[:, None]
            free = free & (hit == 0)
            count += tl.sum((hit & counted[:, None]).to(tl.int32), axis=0)

        level = log_p + tl.log(tl.where(counted, weight, 1.0))[:, None]
        level = tl.where(level < LOWEST, LOWEST, level)
        level = tl.where(counted[:, None] & inside[None, :], level, LOWEST)
        higher = tl.maximum(peak, tl.max(level, axis=0))
        here = tl.sum(tl.where(counted[:, None], tl.exp(level - higher[None, :]), 0.0), axis=0)
        total = total * tl.exp(peak - higher) + here
        peak = higher

    if ALONE:
        conclude(peak, total, count, tl.sum(mass, axis=0), log_sums_ptr, counts_ptr, loss_ptr, M, MP, MODE, LOWEST, ACC)
    else:
        tl.store(peak_ptr + block * MP + lane, peak)
        tl.store(sum_ptr + block * MP + lane, total)
        tl.store(count_ptr + block * MP + lane, count)
        tl.store(part_ptr + block, tl.sum(mass, axis=0))


@triton.jit
def conclude(peak, total, count, mass, log_sums_ptr, counts_ptr, loss_ptr, M,
             MP: tl.constexpr, MODE: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """From whole columns to log-sums, counts and the balance loss."""
    lane = tl.arange(0, MP)
    inside = lane < M
    # nobody counted: no mass, and no loss
    log_sums = tl.where(total == 0, LOWEST, peak + tl.log(tl.where(total == 0, 1.0, total)))
    loss = mass * 0.0
    tl.store(log_sums_ptr + lane, log_sums, mask=inside)
    tl.store(counts_ptr + lane, count.to(tl.int64), mask=inside)
    if MODE == 1:
        mean = log_sums - tl.log(tl.where(mass > 0, mass, mass * 0.0 + 1.0))
        uniform = tl.full([MP], 1.0, ACC) / M
        terms = uniform * (tl.log(uniform) - mean) / M
        loss = tl.where(mass > 0, tl.sum(tl.where(inside, terms, 0.0), axis=0), loss)
    if MODE == 2:
        importance = tl.where(inside, tl.exp(log_sums), 0.0)
        average = tl.sum(importance, axis=0) / M
        away = tl.where(inside, importance - average, 0.0)
        spread = tl.sqrt(tl.sum(away * away, axis=0) / tl.maximum(M - 1, 1))
        loss = tl.where(mass > 0, spread / tl.where(mass > 0, average, mass * 0.0 + 1.0), loss)
    tl.store(loss_ptr, loss)


@triton.jit
def route_sums(
    peak_ptr, sum_ptr, count_ptr, part_ptr, log_sums_ptr, counts_ptr, loss_ptr, M, blocks,
    MP: tl.constexpr, NB: tl.constexpr, MODE: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The second stage: the blocks' columns in index order."""
    lane = tl.arange(0, MP)
    peak = tl.full([MP], LOWEST, ACC)
    total = tl.zeros([MP], ACC)
    count = tl.zeros([MP], tl.int32)
    mass = tl.zeros([NB], ACC)
    for start in range(0, blocks, NB):
        other = start + tl.arange(0, NB)
        known = other < blocks
        at = other[:, None] * MP + lane[None, :]
        peaks = tl.load(peak_ptr + at, mask=known[:, None], other=LOWEST)
        sums = tl.load(sum_ptr + at, mask=known[:, None], other=0.0)
        count += tl.sum(tl.load(count_ptr + at, mask=known[:, None], other=0), axis=0)
        mass += tl.load(part_ptr + other, mask=known, other=0.0)
        higher = tl.maximum(peak, tl.max(peaks, axis=0))
        total = total * tl.exp(peak - higher) + tl.sum(sums * tl.exp(peaks - higher[None, :]), axis=0)
        peak = higher
    conclude(peak, total, count, tl.sum(mass, axis=0), log_sums_ptr, counts_ptr, loss_ptr, M, MP, MODE, LOWEST, ACC)


@triton.jit
def route_backward(
    log_probs_ptr,  # [B, M] ACC, contiguous
    log_sums_ptr,  # [M] ACC
    weight_ptr,  # [B] or unused
    outer_ptr,  # [B, M] gradient on the log-probabilities, or unused
    sums_ptr,  # [M] gradient on the log-sums, or unused
    loss_ptr,  # [1] gradient on the balance loss, or unused
    grad_ptr,  # [B, M] logits' type, contiguous
    B,
    M,
    stride_b,
    stride_m,
    R: tl.constexpr,
    MP: tl.constexpr,
    ALIGN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    OUTER: tl.constexpr,
    SUMS: tl.constexpr,
    MASKED: tl.constexpr,
    MODE: tl.constexpr,
    LOWEST: tl.constexpr,
    ACC: tl.constexpr,
):
    if ALIGN > 1:
        M, stride_b = aligned(M, ALIGN), aligned(stride_b, ALIGN)
    lane = tl.arange(0, MP)
    inside = lane < M
    row = tl.program_id(0) * R + tl.arange(0, R).to(tl.int64)
    live = row < B
    there = live[:, None] & inside[None, :]
    log_p = tl.load(log_probs_ptr + row[:, None] * M + lane[None, :], mask=there, other=0.0)
    log_sums = tl.load(log_sums_ptr + lane, mask=inside, other=0.0)
    pull = tl.zeros([MP], ACC)
    if SUMS:
        pull += tl.load(sums_ptr + lane, mask=inside, other=0.0).to(ACC)
    if MODE == 1:
        pull -= tl.load(loss_ptr).to(ACC) / M / M
    if MODE == 2:
        # the mean's own gradient is one constant per row: the softmax's backward removes it
        importance = tl.where(inside, tl.exp(log_sums), 0.0)
        mean = tl.sum(importance, axis=0) / M
        away = tl.where(inside, importance - mean, 0.0)
        spread = tl.sqrt(tl.sum(away * away, axis=0) / tl.maximum(M - 1, 1))
        slope = importance * away / tl.maximum(M - 1, 1) / mean
        pull += tl.where(spread > 0, slope / tl.where(spread > 0, spread, 1.0), 0.0) * tl.load(loss_ptr).to(ACC)
    part = tl.exp(log_p - log_sums[None, :]) * pull[None, :]
    if WEIGHTED:
        weight = tl.load(weight_ptr + row, mask=live, other=0.0).to(ACC)
        part = tl.where(weight[:, None] > 0, part * weight[:, None], 0.0)
    if OUTER:
        part += tl.load(
            outer_ptr + row[:, None] * stride_b + lane[None, :].to(tl.int64) * stride_m, mask=there, other=0.0
        ).to(ACC)
    part = tl.where(there, part, 0.0)
    if MASKED:  # what a teacher can't see is a constant there
        part = tl.where(log_p == LOWEST, 0.0, part)
    grad = part - tl.exp(log_p) * tl.sum(part, axis=1)[:, None]
    tl.store(grad_ptr + row[:, None] * M + lane[None, :], grad.to(grad_ptr.dtype.element_ty), mask=there)


def tiles(rows: int, teachers: int, where: tuple[str, ...]) -> tuple[int, int, int, int, int]:
    """(rows a tile, padded teachers, tiles a block, blocks, warps): at most 512 blocks; few rows take fewer warps."""
    mp = max(2, pow2(teachers))
    choice = choose("route", mp, where=where)
    r, warps = min(choice["rows"], pow2(rows)), choice["warps"]
    if r < choice["rows"]:
        warps = min(warps, max(2, r * mp // 256))
    wanted = -(-max(rows, 1) // r)
    per_block = pow2(wanted) if wanted <= 4 else pow2(-(-wanted // 512))
    return r, mp, per_block, -(-wanted // per_block), warps


@torch.library.custom_op("mstdistill::route", mutates_args=())
def route(
    logits: Tensor, weight: Tensor | None, seen: Tensor | None, k: int, mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities [B, M], indices [B, k], log-sums [M], counts [M], balance loss [])."""
    rows, teachers = logits.shape
    acc, device = wide(logits.dtype), logits.device
    log_probs = torch.empty(rows, teachers, dtype=acc, device=device)
    indices = torch.empty(rows, k, dtype=torch.int64, device=device)
    log_sums = torch.empty(teachers, dtype=acc, device=device)
    counts = torch.empty(teachers, dtype=torch.int64, device=device)
    loss = torch.empty((), dtype=acc, device=device)
    r, mp, per_block, blocks, warps = tiles(rows, teachers, device_names(device))
    scratch = torch.empty(2 * blocks * mp + blocks, dtype=acc, device=device)
    tally = torch.empty(blocks * mp, dtype=torch.int32, device=device)
    if weight is not None:
        weight = weight.contiguous()
    if seen is not None:
        seen = seen.contiguous().view(torch.uint8)
    parts = (scratch, scratch[blocks * mp :], tally, scratch[2 * blocks * mp :])
    shared = {"MP": mp, "MODE": BALANCES.index(mode), "LOWEST": LOWEST, "ACC": acc_type(acc), "num_warps": warps,
              "enable_fp_fusion": FUSE_MULTIPLY_ADD}  # fmt: skip
    with on_device(logits):
        route_forward[(blocks,)](
            logits, weight if weight is not None else logits, seen, log_probs, indices,
            *parts, log_sums, counts, loss, rows, teachers, logits.stride(0), logits.stride(1),
            K=k, R=r, TILES=per_block, ALONE=blocks == 1, ALIGN=alignment((teachers,), logits),
            WEIGHTED=weight is not None, MASKED=seen is not None, **shared,
        )  # fmt: skip
        if blocks > 1:
            nb = max(1, min(pow2(blocks), 4096 // mp))
            route_sums[(1,)](*parts, log_sums, counts, loss, teachers, blocks, NB=nb, **shared)
    return log_probs, indices, log_sums, counts, loss


@route.register_fake
def _(
    logits: Tensor, weight: Tensor | None, seen: Tensor | None, k: int, mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, teachers = logits.shape
    acc = wide(logits.dtype)
    return (
        logits.new_empty(rows, teachers, dtype=acc),
        logits.new_empty(rows, k, dtype=torch.int64),
        logits.new_empty(teachers, dtype=acc),
        logits.new_empty(teachers, dtype=torch.int64),
        logits.new_empty((), dtype=acc),
    )


@torch.library.custom_op("mstdistill::route_backward", mutates_args=())
def route_gradient(
    log_probs: Tensor,
    log_sums: Tensor,
    weight: Tensor | None,
    outer: Tensor | None,
    sums: Tensor | None,
    loss: Tensor | None,
    masked: bool,
    mode: str,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [B, M] at the logits, of type `dtype`."""
    rows, teachers = log_probs.shape
    grad = torch.empty(rows, teachers, dtype=dtype, device=log_probs.device)
    r, mp, _, _, warps = tiles(rows, teachers, device_names(log_probs.device))
    strides = outer.stride() if outer is not None else (0, 0)
    align = alignment((teachers,), *([] if outer is None else [outer]))
    if weight is not None:
        weight = weight.contiguous()
    blank = log_probs
    with on_device(log_probs):
        route_backward[(-(-rows // r),)](
            log_probs, log_sums, *(x if x is not None else blank for x in (weight, outer, sums, loss)), grad,
            rows, teachers, *strides, R=r, MP=mp, ALIGN=align,
            WEIGHTED=weight is not None, OUTER=outer is not None, SUMS=sums is not None, MASKED=masked,
            MODE=BALANCES.index(mode) if loss is not None else 0, LOWEST=LOWEST, ACC=acc_type(log_probs.dtype),
            num_warps=warps, enable_fp_fusion=FUSE_MULTIPLY_ADD,
        )  # fmt: skip
    return grad


@route_gradient.register_fake
def _(
    log_probs: Tensor,
    log_sums: Tensor,
    weight: Tensor | None,
    outer: Tensor | None,
    sums: Tensor | None,
    loss: Tensor | None,
    masked: bool,
    mode: str,
    dtype: torch.dtype,
) -> Tensor:
    return log_probs.new_empty(log_probs.shape, dtype=dtype)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    logits, weight, seen, _, mode = inputs
    log_probs, indices, log_sums, counts, _ = output
    ctx.mark_non_differentiable(indices, counts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(log_probs, log_sums, weight)
    ctx.masked, ctx.mode, ctx.dtype = seen is not None, mode, logits.dtype


def _backward(ctx: Any, outer: Any, _indices: Any, sums: Any, _counts: Any, loss: Any) -> Any:
    log_probs, log_sums, weight = ctx.saved_tensors
    if ctx.mode == "":
        loss = None
    sums = None if sums is None else sums.contiguous()  # autograd hands on expanded tensors
    given = (weight, outer, sums, loss, ctx.masked, ctx.mode, ctx.dtype)
    return torch.ops.mstdistill.route_backward(log_probs, log_sums, *given), None, None, None, None


route.register_autograd(_backward, setup_context=_setup)
no_second_derivative(route_gradient, "route")
