"""The mask's attention with scalar values; equations in `mstdistill.kernels.mask`.

`packed` holds what one projection gives, row by row: all heads' q (times log2(e)/sqrt(dh)), all heads' k, t, each head
padded with zeros to DH, a sum of at most three powers of two, so that 99 columns cost 112 and not 128. Scores are in
base 2. Nothing of size d x d leaves the chip; forward saves y and the log-sum-exp. No atomics: backward takes one
kernel over rows (dq) and one over columns (dk, dt).

Bytes (e of `packed`, W = 2 H DH + H): forward B d W e + 8 B H d, backward 2 B d W e + 12 B H d.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import interpreted, wide
from ..tiles import choose, device_names
from .base import FUSE_MULTIPLY_ADD, acc_type, no_second_derivative, on_device

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def load_part(base, row, d, stride, START: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr):
    """Columns START..START+WIDTH of rows [BM]; zeros beyond d."""
    column = START + tl.arange(0, WIDTH)
    x = tl.load(base + row[:, None] * stride + column[None, :], mask=(row < d)[:, None], other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def scores_of(q0, q1, q2, k0, k1, k2, D1: tl.constexpr, D2: tl.constexpr, PRECISION: tl.constexpr,
              ACC: tl.constexpr):  # fmt: skip
    """q k' [BM, BN] over the parts of the head width."""
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION, out_dtype=ACC)
    if D1 > 0:
        s += tl.dot(q1, tl.trans(k1), input_precision=PRECISION, out_dtype=ACC)
    if D2 > 0:
        s += tl.dot(q2, tl.trans(k2), input_precision=PRECISION, out_dtype=ACC)
    return s


@triton.jit
def attend(
    packed_ptr,  # [B, d, W]
    y_ptr,  # [B, H, d] ACC
    lse_ptr,  # [B, H, d] ACC, base 2
    d,
    stride_b,
    stride_d,
    H: tl.constexpr,
    DH: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    head = pair % H
    q_base = packed_ptr + (pair // H) * stride_b + head * DH
    k_base = q_base + H * DH
    t_base = packed_ptr + (pair // H) * stride_b + 2 * H * DH + head
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    q0 = load_part(q_base, row, d, stride_d, 0, D0, UPCAST)
    q1, q2 = q0, q0
    if D1 > 0:
        q1 = load_part(q_base, row, d, stride_d, D0, D1, UPCAST)
    if D2 > 0:
        q2 = load_part(q_base, row, d, stride_d, D0 + D1, D2, UPCAST)
    peak = tl.full([BM], float("-inf"), ACC)
    total = tl.zeros([BM], ACC)
    value = tl.zeros([BM], ACC)
    for start in range(0, d, BN):
        column = start + tl.arange(0, BN)
        k0 = load_part(k_base, column, d, stride_d, 0, D0, UPCAST)
        k1, k2 = k0, k0
        if D1 > 0:
            k1 = load_part(k_base, column, d, stride_d, D0, D1, UPCAST)
        if D2 > 0:
            k2 = load_part(k_base, column, d, stride_d, D0 + D1, D2, UPCAST)
        t = tl.load(t_base + column * stride_d, mask=column < d, other=0.0).to(ACC)
        s = scores_of(q0, q1, q2, k0, k1, k2, D1, D2, PRECISION, ACC)
        s = tl.where((column < d)[None, :], s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, axis=1))
        shrink = tl.exp2(peak - higher)
        p = tl.exp2(s - higher[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        value = value * shrink + tl.sum(p * t[None, :], axis=1)
        peak = higher
    out = pair * d + row
    tl.store(y_ptr + out, value / total, mask=row < d)
    tl.store(lse_ptr + out, peak + tl.log2(total), mask=row < d)


@triton.jit
def attend_backward_rows(
    packed_ptr, y_ptr, lse_ptr,
    delta_ptr,  # [B, H, d] gradient at y, any strides
    grad_ptr,  # [B, d, W] contiguous: its q columns
    d, stride_b, stride_d, delta_b, delta_h, delta_d,
    H: tl.constexpr, DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dq_i = ln2 sum_j delta_i P_ij (t_j - y_i) k_j."""
    pair = tl.program_id(0).to(tl.int64)
    instance, head = pair // H, pair % H
    q_base = packed_ptr + instance * stride_b + head * DH
    k_base = q_base + H * DH
    t_base = packed_ptr + instance * stride_b + 2 * H * DH + head
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    live = row < d
    q0 = load_part(q_base, row, d, stride_d, 0, D0, UPCAST)
    q1, q2 = q0, q0
    if D1 > 0:
        q1 = load_part(q_base, row, d, stride_d, D0, D1, UPCAST)
    if D2 > 0:
        q2 = load_part(q_base, row, d, stride_d, D0 + D1, D2, UPCAST)
    y = tl.load(y_ptr + pair * d + row, mask=live, other=0.0)
    lse = tl.load(lse_ptr + pair * d + row, mask=live, other=0.0)
    delta = tl.load(delta_ptr + instance * delta_b + head * delta_h + row * delta_d, mask=live, other=0.0).to(ACC)
    g0 = tl.zeros([BM, D0], ACC)
    g1 = tl.zeros([BM, D1 if D1 > 0 else 16], ACC)
    g2 = tl.zeros([BM, D2 if D2 > 0 else 16], ACC)
    for start in range(0, d, BN):
        column = start + tl.arange(0, BN)
        k0 = load_part(k_base, column, d, stride_d, 0, D0, UPCAST)
        k1, k2 = k0, k0
        if D1 > 0:
            k1 = load_part(k_base, column, d, stride_d, D0, D1, UPCAST)
        if D2 > 0:
            k2 = load_part(k_base, column, d, stride_d, D0 + D1, D2, UPCAST)
        t = tl.load(t_base + column * stride_d, mask=column < d, other=0.0).to(ACC)
        s = scores_of(q0, q1, q2, k0, k1, k2, D1, D2, PRECISION, ACC)
        p = tl.where((column < d)[None, :], tl.exp2(s - lse[:, None]), 0.0)
        ds = (p * (t[None, :] - y[:, None]) * delta[:, None]).to(k0.dtype)
        g0 += tl.dot(ds, k0, input_precision=PRECISION, out_dtype=ACC)
        if D1 > 0:
            g1 += tl.dot(ds, k1, input_precision=PRECISION, out_dtype=ACC)
        if D2 > 0:
            g2 += tl.dot(ds, k2, input_precision=PRECISION, out_dtype=ACC)
    base = grad_ptr + instance * d * W + head * DH + row[:, None] * W
    kind = grad_ptr.dtype.element_ty
    tl.store(base + tl.arange(0, D0)[None, :], (g0 * LN2).to(kind), mask=live[:, None])
    if D1 > 0:
        tl.store(base + D0 + tl.arange(0, D1)[None, :], (g1 * LN2).to(kind), mask=live[:, None])
    if D2 > 0:
        tl.store(base + D0 + D1 + tl.arange(0, D2)[None, :], (g2 * LN2).to(kind), mask=live[:, None])


@triton.jit
def attend_backward_columns(
    packed_ptr, y_ptr, lse_ptr,
    delta_ptr,  # [B, H, d] gradient at y, any strides
    grad_ptr,  # [B, d, W] contiguous: its k and t columns
    d, stride_b, stride_d, delta_b, delta_h, delta_d,
    H: tl.constexpr, DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, W: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dk_j = ln2 sum_i delta_i P_ij (t_j - y_i) q_i and dt_j = sum_i delta_i P_ij; tiles are [j, i]."""
    pair = tl.program_id(0).to(tl.int64)
    instance, head = pair // H, pair % H
    q_base = packed_ptr + instance * stride_b + head * DH
    k_base = q_base + H * DH
    t_base = packed_ptr + instance * stride_b + 2 * H * DH + head
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    live = column < d
    k0 = load_part(k_base, column, d, stride_d, 0, D0, UPCAST)
    k1, k2 = k0, k0
    if D1 > 0:
        k1 = load_part(k_base, column, d, stride_d, D0, D1, UPCAST)
    if D2 > 0:
        k2 = load_part(k_base, column, d, stride_d, D0 + D1, D2, UPCAST)
    t = tl.load(t_base + column * stride_d, mask=live, other=0.0).to(ACC)
    g0 = tl.zeros([BN, D0], ACC)
    g1 = tl.zeros([BN, D1 if D1 > 0 else 16], ACC)
    g2 = tl.zeros([BN, D2 if D2 > 0 else 16], ACC)
    gt = tl.zeros([BN], ACC)
    for start in range(0, d, BM):
        row = start + tl.arange(0, BM)
        there = row < d
        q0 = load_part(q_base, row, d, stride_d, 0, D0, UPCAST)
        q1, q2 = q0, q0
        if D1 > 0:
            q1 = load_part(q_base, row, d, stride_d, D0, D1, UPCAST)
        if D2 > 0:
            q2 = load_part(q_base, row, d, stride_d, D0 + D1, D2, UPCAST)
        y = tl.load(y_ptr + pair * d + row, mask=there, other=0.0)
        lse = tl.load(lse_ptr + pair * d + row, mask=there, other=0.0)
        delta = tl.load(delta_ptr + instance * delta_b + head * delta_h + row * delta_d, mask=there, other=0.0).to(ACC)
        s = scores_of(k0, k1, k2, q0, q1, q2, D1, D2, PRECISION, ACC)
        p = tl.where(there[None, :], tl.exp2(s - lse[None, :]), 0.0) * delta[None, :]
        gt += tl.sum(p, axis=1)
        ds = (p * (t[:, None] - y[None, :])).to(q0.dtype)
        g0 += tl.dot(ds, q0, input_precision=PRECISION, out_dtype=ACC)
        if D1 > 0:
            g1 += tl.dot(ds, q1, input_precision=PRECISION, out_dtype=ACC)
        if D2 > 0:
            g2 += tl.dot(ds, q2, input_precision=PRECISION, out_dtype=ACC)
    row_base = grad_ptr + instance * d * W + column * W
    base = row_base[:, None] + H * DH + head * DH
    kind = grad_ptr.dtype.element_ty
    tl.store(base + tl.arange(0, D0)[None, :], (g0 * LN2).to(kind), mask=live[:, None])
    if D1 > 0:
        tl.store(base + D0 + tl.arange(0, D1)[None, :], (g1 * LN2).to(kind), mask=live[:, None])
    if D2 > 0:
        tl.store(base + D0 + D1 + tl.arange(0, D2)[None, :], (g2 * LN2).to(kind), mask=live[:, None])
    tl.store(row_base + 2 * H * DH + head, gt.to(kind), mask=live)


def head_parts(width: int) -> tuple[int, int, int]:
    """A head's width as at most three descending powers of two of 16 or more (0: none), that hold it.

    Up to 128 the sum is the width rounded up to 16; beyond, 192 or 256: finer splits spill.
    """
    if width > 128:
        return (128, 64, 0) if width <= 192 else (256, 0, 0)
    columns = -(-width // 16) * 16
    d0 = 1 << (columns.bit_length() - 1)
    d1 = 1 << ((columns - d0).bit_length() - 1) if columns > d0 else 0
    return d0, d1, columns - d0 - d1


def padded_head(width: int) -> int:
    """Columns that a head takes in `packed`."""
    return sum(head_parts(width))


def padded_values(heads: int) -> int:
    """Columns that t takes in `packed`: a row is a multiple of 16 columns, which is what makes loads wide."""
    return -(-heads // 16) * 16


MAX_HEAD = 256


def tiles(
    dtype: torch.dtype, head: int, precision: str, backward: bool, where: tuple[str, ...]
) -> tuple[int, int, int, int]:
    """(rows, columns, warps, stages) for a padded head width."""
    kind = {torch.float64: "float64", torch.float32: precision}.get(dtype, "bf16")
    choice = choose("attend_backward" if backward else "attend", head, kind, where)
    return choice["rows"], choice["columns"], choice["warps"], choice["stages"]


def _constants(packed: Tensor, heads: int, head: int, precision: str, backward: bool) -> dict[str, Any]:
    d0, d1, d2 = head_parts(head)
    bm, bn, warps, stages = tiles(packed.dtype, d0 + d1 + d2, precision, backward, device_names(packed.device))
    return {
        "H": heads, "DH": d0 + d1 + d2, "D0": d0, "D1": d1, "D2": d2, "BM": bm, "BN": bn,
        "PRECISION": "ieee" if packed.dtype == torch.float64 else precision,
        # the interpreter takes bfloat16 operands of a product for integers
        "UPCAST": interpreted() and packed.dtype == torch.bfloat16, "ACC": acc_type(packed.dtype),
        "num_warps": warps, "num_stages": stages, "enable_fp_fusion": FUSE_MULTIPLY_ADD,
    }  # fmt: skip


@torch.library.custom_op("mstdistill::scalar_attention", mutates_args=())
def scalar_attention(packed: Tensor, heads: int, head: int, precision: str) -> tuple[Tensor, Tensor]:
    """(y, lse): [B, H, d] each, from packed [B, d, W]; `head` is the unpadded width."""
    batch, d, _ = packed.shape
    packed = packed.contiguous()
    y, lse = (torch.empty(batch, heads, d, dtype=wide(packed.dtype), device=packed.device) for _ in range(2))
    constants = _constants(packed, heads, head, precision, backward=False)
    if packed.numel():
        with on_device(packed):
            attend[(batch * heads, triton.cdiv(d, constants["BM"]))](
                packed, y, lse, d, packed.stride(0), packed.stride(1), **constants
            )
    return y, lse


@scalar_attention.register_fake
def _(packed: Tensor, heads: int, head: int, precision: str) -> tuple[Tensor, Tensor]:
    shape = (packed.shape[0], heads, packed.shape[1])
    return packed.new_empty(shape, dtype=wide(packed.dtype)), packed.new_empty(shape, dtype=wide(packed.dtype))


@torch.library.custom_op("mstdistill::scalar_attention_backward", mutates_args=())
def scalar_attention_gradient(
    delta: Tensor, packed: Tensor, y: Tensor, lse: Tensor, heads: int, head: int, precision: str
) -> Tensor:
    """Gradient [B, d, W] at `packed`."""
    batch, d, w = packed.shape
    packed = packed.contiguous()
    grad = torch.empty_like(packed)
    grad[..., 2 * heads * padded_head(head) + heads :] = 0.0
    constants = _constants(packed, heads, head, precision, backward=True) | {"W": w}
    if packed.numel():
        with on_device(packed):
            for kernel, block in ((attend_backward_rows, "BM"), (attend_backward_columns, "BN")):
                kernel[(batch * heads, triton.cdiv(d, constants[block]))](
                    packed, y, lse, delta, grad, d, packed.stride(0), packed.stride(1), *delta.stride(), **constants
                )
    return grad


@scalar_attention_gradient.register_fake
def _(delta: Tensor, packed: Tensor, y: Tensor, lse: Tensor, heads: int, head: int, precision: str) -> Tensor:
    return packed.new_empty(packed.shape)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    packed, ctx.heads, ctx.head, ctx.precision = inputs
    y, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(packed, y, lse)


def _backward(ctx: Any, delta: Any, _lse: Any) -> Any:
    if delta is None:
        return None, None, None, None
    op = torch.ops.mstdistill.scalar_attention_backward
    return op(delta, *ctx.saved_tensors, ctx.heads, ctx.head, ctx.precision), None, None, None


scalar_attention.register_autograd(_backward, setup_context=_setup)
no_second_derivative(scalar_attention_gradient, "the mask's attention")
