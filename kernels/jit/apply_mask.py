"""The mask's last step in one launch each way: sum over the heads, sigmoid, product with a feature of any layout.

Bytes for a feature [B, d, P] of e bytes: forward 2 B d P e + 4 B (H + 1) d, backward 3 B d P e (2 without a gradient at
the feature). Vectors have P = 1; maps and tokens are strided views, so nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import choose, device_names
from .base import FUSE_MULTIPLY_ADD, acc_type, aligned, alignment, no_second_derivative, on_device, pow2


@triton.jit
def apply_mask(
    y_ptr,  # [B, H, d] ACC
    constant_ptr,  # [G] added before the sigmoid; instance b belongs to group b // per_group
    feature_ptr,  # [B, d, P] any strides
    out_ptr,  # [B, d, P] any strides
    mask_ptr,  # [B, d] ACC
    d, P, per_group, feature_b, feature_d, feature_p, out_b, out_d, out_p,
    H: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """mask = sigmoid(sum over heads of y + constant), out = mask * feature."""
    if ALIGN > 1:
        feature_b, out_b = aligned(feature_b, ALIGN), aligned(out_b, ALIGN)
        if WIDE:
            d, feature_p, out_p = aligned(d, ALIGN), aligned(feature_p, ALIGN), aligned(out_p, ALIGN)
        else:
            P, feature_d, out_d = aligned(P, ALIGN), aligned(feature_d, ALIGN), aligned(out_d, ALIGN)
    instance = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)
    live = row < d
    logit = tl.zeros([BD], ACC) + tl.load(constant_ptr + instance // per_group).to(ACC)
    for head in range(H):
        logit += tl.load(y_ptr + (instance * H + head) * d + row, mask=live, other=0.0)
    mask = 1.0 / (1.0 + tl.exp(-logit))
    tl.store(mask_ptr + instance * d + row, mask, mask=live)
    for start in range(0, P, BP):
        position = tl.cast(start, tl.int64) + tl.arange(0, BP)
        there = live[:, None] & (position < P)[None, :]
        source = feature_ptr + instance * feature_b + row[:, None] * feature_d + position[None, :] * feature_p
        x = tl.load(source, mask=there, other=0.0).to(ACC) * mask[:, None]
        sink = out_ptr + instance * out_b + row[:, None] * out_d + position[None, :] * out_p
        tl.store(sink, x.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def apply_mask_backward(
    mask_ptr,  # [B, d] ACC
    feature_ptr,  # [B, d, P] any strides
    outer_ptr,  # [B, d, P] any strides: gradient at out
    extra_ptr,  # [B, d] gradient at the mask itself, or unused
    delta_ptr,  # [B, d] ACC: gradient before the sigmoid
    grad_ptr,  # [B, d, P] any strides: gradient at the feature, or unused
    d, P, feature_b, feature_d, feature_p, outer_b, outer_d, outer_p, grad_b, grad_d, grad_p,
    BD: tl.constexpr, BP: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr, EXTRA: tl.constexpr,
    GRAD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if ALIGN > 1:
        feature_b, outer_b, grad_b = aligned(feature_b, ALIGN), aligned(outer_b, ALIGN), aligned(grad_b, ALIGN)
        if WIDE:
            d, feature_p = aligned(d, ALIGN), aligned(feature_p, ALIGN)
            outer_p, grad_p = aligned(outer_p, ALIGN), aligned(grad_p, ALIGN)
        else:
            P, feature_d = aligned(P, ALIGN), aligned(feature_d, ALIGN)
            outer_d, grad_d = aligned(outer_d, ALIGN), aligned(grad_d, ALIGN)
    instance = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)
    live = row < d
    mask = tl.load(mask_ptr + instance * d + row, mask=live, other=0.0)
    total = tl.zeros([BD], ACC)
    for start in range(0, P, BP):
        position = tl.cast(start, tl.int64) + tl.arange(0, BP)
        there = live[:, None] & (position < P)[None, :]
        at = instance * outer_b + row[:, None] * outer_d + position[None, :] * outer_p
        outer = tl.load(outer_ptr + at, mask=there, other=0.0).to(ACC)
        at = instance * feature_b + row[:, None] * feature_d + position[None, :] * feature_p
        total += tl.sum(outer * tl.load(feature_ptr + at, mask=there, other=0.0).to(ACC), axis=1)
        if GRAD:
            at = instance * grad_b + row[:, None] * grad_d + position[None, :] * grad_p
            tl.store(grad_ptr + at, (outer * mask[:, None]).to(grad_ptr.dtype.element_ty), mask=there)
    if EXTRA:
        total += tl.load(extra_ptr + instance * d + row, mask=live, other=0.0).to(ACC)
    tl.store(delta_ptr + instance * d + row, total * mask * (1.0 - mask), mask=live)


def apply_tiles(d: int, positions: int, contiguous_width: bool, where: tuple[str, ...]) -> tuple[int, int, int]:
    """(features, positions) a tile, long along the axis that lies in memory, and warps."""
    layout = "vectors" if positions == 1 else "tokens" if contiguous_width else "maps"  # tokens, channels-last maps
    choice = choose("apply_mask", pow2(d if layout == "vectors" else positions), layout, where)
    least = (1, 16) if layout == "maps" else (16, 1)
    return (min(choice["features"], max(least[0], pow2(d))),
            min(choice["positions"], max(least[1], pow2(positions))), choice["warps"])  # fmt: skip


def _alignment(wide: bool, *tensors: Tensor) -> int:
    """See `alignment`; the lanes run along the features where these are contiguous, else along the positions."""
    lane = 1 if wide else 2
    return alignment((tensors[0].shape[lane],), *tensors, lane=lane)


@torch.library.custom_op("mstdistill::apply_mask", mutates_args=())
def apply(y: Tensor, constant: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    """(out [B, d, P] with the feature's strides, mask [B, d]) from y [B, H, d], constant [G], feature [B, d, P]."""
    batch, heads, d = y.shape
    out = torch.empty_like(feature)
    mask = torch.empty(batch, d, dtype=y.dtype, device=y.device)
    if feature.numel():
        wide = feature.stride(1) == 1
        bd, bp, warps = apply_tiles(d, feature.shape[2], wide, device_names(feature.device))
        align = _alignment(wide, feature, out)
        with on_device(feature):
            apply_mask[(batch, triton.cdiv(d, bd))](
                y.contiguous(), constant.contiguous(), feature, out, mask, d, feature.shape[2],
                max(1, batch // max(1, len(constant))), *feature.stride(), *out.stride(),
                H=heads, BD=bd, BP=bp, ALIGN=align, WIDE=wide, ACC=acc_type(y.dtype),
                num_warps=warps, enable_fp_fusion=FUSE_MULTIPLY_ADD,
            )  # fmt: skip
    return out, mask


@apply.register_fake
def _(y: Tensor, constant: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(feature), y.new_empty(y.shape[0], y.shape[2])


@torch.library.custom_op("mstdistill::apply_mask_backward", mutates_args=())
def apply_gradient(
    outer: Tensor | None, extra: Tensor | None, mask: Tensor, feature: Tensor, feature_grad: bool
) -> tuple[Tensor, Tensor]:
    """(gradient [B, d] before the sigmoid, gradient at the feature or empty)."""
    batch, d, positions = feature.shape
    grad = torch.empty_like(feature) if feature_grad else feature.new_empty(0)
    outer = torch.zeros_like(feature) if outer is None else outer
    delta = torch.empty_like(mask)
    if feature.numel():
        wide = feature.stride(1) == 1
        bd, bp, warps = apply_tiles(d, positions, wide, device_names(feature.device))
        align = _alignment(wide, feature, outer, *([grad] if feature_grad else []))
        with on_device(feature):
            apply_mask_backward[(batch, triton.cdiv(d, bd))](
                mask, feature, outer, mask if extra is None else extra.contiguous(), delta, grad, d, positions,
                *feature.stride(), *outer.stride(), *(grad.stride() if feature_grad else (0, 0, 0)),
                BD=bd, BP=bp, ALIGN=align, WIDE=wide, EXTRA=extra is not None,
                GRAD=feature_grad, ACC=acc_type(mask.dtype),
                num_warps=warps, enable_fp_fusion=FUSE_MULTIPLY_ADD,
            )  # fmt: skip
    return delta, grad


@apply_gradient.register_fake
def _(
    outer: Tensor | None, extra: Tensor | None, mask: Tensor, feature: Tensor, feature_grad: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mask), torch.empty_like(feature) if feature_grad else feature.new_empty(0)


def _setup_apply(ctx: Any, inputs: Any, output: Any) -> None:
    y, constant, feature = inputs
    ctx.set_materialize_grads(False)
    ctx.heads, ctx.groups, ctx.kind = y.shape[1], len(constant), constant.dtype
    ctx.save_for_backward(output[1], feature)


def _backward_apply(ctx: Any, outer: Any, extra: Any) -> Any:
    if outer is None and extra is None:
        return None, None, None
    mask, feature = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2]
    delta, grad = torch.ops.mstdistill.apply_mask_backward(outer, extra, mask, feature, wanted)
    every_head = delta.unsqueeze(1).expand(-1, ctx.heads, -1)
    constant = delta.reshape(ctx.groups, -1).sum(dim=1).to(ctx.kind)
    return every_head, constant, grad if wanted else None


apply.register_autograd(_backward_apply, setup_context=_setup_apply)
no_second_derivative(apply_gradient, "apply_mask")
