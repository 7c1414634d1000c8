"""MaskNet's attention in its collapsed form: scalar values, no output projection, no [B, H, d, d] tensor kept.

A MaskNet embeds a feature of width d into d tokens of width h, lets them attend to each other, and maps each to one
number through a sigmoid. Only that number leaves, so the value path collapses to a scalar per token and head:

    u = Wo' w,  g_a = (Wv^a)' u_a,  c = c0 + w.bo + u.bv
    q_i = (Wq x_i + bq) / sqrt(dh),  k_j = Wk x_j,  t_j = g_a . x_j      (bk adds a constant over j: softmax drops it)
    P = softmax_j(q_i . k_j),  y_i = sum_a sum_j P_ij t_j,  mask_i = sigmoid(y_i + c),  out = mask * feature

which is exact and takes 6 d^2 h FLOPs in place of 10 (h = d/2). Backward, with delta_i the gradient at y_i and
P recomputed from the saved log-sum-exp:

    dS_ij = delta_i P_ij (t_j - y_ia),  dq = dS k,  dk = dS' q,  dt_j = sum_i delta_i P_ij

The last step masks a feature: vectors [B, d], maps [B, d, H, W] or tokens [B, S, d]. Several masks of one size can go
together: their weights carry a leading axis G, and so do vector and feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from .launch import check_floating, use_triton

PRECISIONS = ("tf32", "ieee", "bf16")
# Heads wider than this take the plain form: their tiles don't fit a multiprocessor.
MAX_HEAD = 256

# Scores of a chunk: 2 MB of float32, which stay in the cache from one pass over them to the next; up to 16 MB where
# else a thread had no row, since it is rows that torch shares out.
_CHUNK_ELEMENTS, _MOST_ELEMENTS = 2**19, 2**22


def _chunks(rows: int, width: int) -> range:
    """Where chunks of rows start."""
    scores = max(1, width * width)
    return range(0, rows, max(1, min(torch.get_num_threads(), _MOST_ELEMENTS // scores), _CHUNK_ELEMENTS // scores))


class _AttentionWeights:
    """softmax_j(q_i . k_j) of a chunk after the other, in memory that all of them share. Not by exp: where a
    power is too small to be told from nothing, it takes forty times as long."""

    def __init__(self, q: Tensor, k: Tensor, step: range) -> None:
        self.q, self.k = q, k
        self._held = q.new_empty(2, min(step.step, len(q)), q.shape[1], q.shape[1])

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Of these rows [n, d, d], and as much memory that is free."""
        q = self.q[part]
        scores, weights = self._held[:, : len(q)]
        torch.bmm(q, self.k[part].transpose(1, 2), out=scores)
        return torch.softmax(scores, dim=2, out=weights), scores


class _ScalarAttention(torch.autograd.Function):
    """y[n, i] = sum_j softmax_j(q_i . k_j) t_j for n = B*H rows, in chunks of rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        y, step = torch.empty_like(t), _chunks(q.shape[0], q.shape[1])
        weights = _AttentionWeights(q, k, step)
        for start in step:
            part = slice(start, start + step.step)
            y[part] = torch.bmm(weights.of(part)[0], t[part].unsqueeze(2)).squeeze(2)
        ctx.save_for_backward(q, k, t, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, t, y = ctx.saved_tensors
        grad_q, grad_k, grad_t = torch.empty_like(q), torch.empty_like(k), torch.empty_like(t)
        step = _chunks(q.shape[0], q.shape[1])
        weights = _AttentionWeights(q, k, step)
        for start in step:
            part = slice(start, start + step.step)
            p, apart = weights.of(part)
            torch.sub(t[part].unsqueeze(1), y[part].unsqueeze(2), out=apart)
            grad_t[part] = p.mul_(grad_y[part].unsqueeze(2)).sum(dim=1)
            p.mul_(apart)
            grad_q[part] = torch.bmm(p, k[part])
            grad_k[part] = torch.bmm(p.transpose(1, 2), q[part])
        return grad_q, grad_k, grad_t


@dataclass(frozen=True)
class MaskWeights:
    """A MaskNet's parameters, or those of G MaskNets of one size with a leading axis G each.

    Attributes:
        embed_weight, embed_bias: [d*h, d], [d*h].
        in_proj_weight, in_proj_bias: [3h, h], [3h], as in `nn.MultiheadAttention`.
        out_proj_weight, out_proj_bias: [h, h], [h].
        fc_weight, fc_bias: [1, h], [1].
        num_heads: divides h.
    """

    embed_weight: Tensor
    embed_bias: Tensor
    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj_weight: Tensor
    out_proj_bias: Tensor
    fc_weight: Tensor
    fc_bias: Tensor
    num_heads: int

    @classmethod
    def of(cls, embed: nn.Linear, attention: nn.MultiheadAttention, fc: nn.Linear) -> MaskWeights:
        """From the three layers of a MaskNet."""
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if weight is None or bias is None:
            raise ValueError("attention: needs one width for queries, keys and values, and biases")
        return cls(
            embed.weight, embed.bias, weight, bias, attention.out_proj.weight, attention.out_proj.bias,
            fc.weight, fc.bias, attention.num_heads,
        )  # fmt: skip

    @classmethod
    def stack(cls, masks: list[MaskWeights]) -> MaskWeights:
        """Several masks of one size as one."""
        stacked = {name: torch.stack([getattr(mask, name) for mask in masks]) for name in _NAMES}
        return cls(num_heads=masks[0].num_heads, **stacked)

    def grouped(self) -> MaskWeights:
        """With the leading axis G, of 1 where there was none."""
        return self if self.embed_weight.dim() == 3 else self._map(lambda x: x.unsqueeze(0))

    def __getitem__(self, group: int) -> MaskWeights:
        return self._map(lambda x: x[group])

    def _map(self, change: Callable[[Tensor], Tensor]) -> MaskWeights:
        return MaskWeights(num_heads=self.num_heads, **{name: change(getattr(self, name)) for name in _NAMES})

    @property
    def hidden(self) -> int:
        """h."""
        return self.out_proj_weight.shape[-1]

    def values(self) -> tuple[Tensor, Tensor]:
        """(g [G, H, h], c [G]): what turns tokens into scalar values, and what is added to their mean; from grouped
        weights."""
        groups, heads, hidden = len(self.fc_weight), self.num_heads, self.hidden
        head = hidden // heads
        w_v = self.in_proj_weight[:, 2 * hidden :].view(groups, heads, head, hidden)
        u = self.fc_weight @ self.out_proj_weight  # [G, 1, h]
        g = torch.einsum("gad,gadh->gah", u.view(groups, heads, head), w_v)
        biases = (self.fc_weight[:, 0] * self.out_proj_bias + u[:, 0] * self.in_proj_bias[:, 2 * hidden :]).sum(dim=1)
        return g, self.fc_bias[:, 0] + biases


_NAMES = tuple(item.name for item in fields(MaskWeights) if item.name != "num_heads")


def mask_values_reference(vector: Tensor, weights: MaskWeights) -> Tensor:
    """`mask_values` in plain PyTorch, collapsed; the score matrices come and go in chunks."""
    if weights.embed_weight.dim() == 3:
        return torch.stack([mask_values_reference(vector[i], weights[i]) for i in range(len(vector))])
    batch, width = vector.shape
    heads, hidden = weights.num_heads, weights.hidden
    head = hidden // heads
    w_q, w_k, _ = weights.in_proj_weight.split(hidden)
    b_q = weights.in_proj_bias[:hidden]
    g, constant = weights.grouped().values()

    tokens = torch.nn.functional.linear(vector.to(weights.embed_weight.dtype), weights.embed_weight, weights.embed_bias)
    tokens = tokens.view(batch * width, hidden)
    scale = 1.0 / math.sqrt(head)
    q = torch.addmm(b_q * scale, tokens, (w_q * scale).t())
    k = tokens @ w_k.t()
    t = tokens @ g[0].t()

    def by_head(x: Tensor) -> Tensor:
        return x.view(batch, width, heads, head).transpose(1, 2).reshape(batch * heads, width, head)

    values = t.view(batch, width, heads).transpose(1, 2).reshape(batch * heads, width)
    y: Tensor = _ScalarAttention.apply(by_head(q), by_head(k), values)
    return torch.sigmoid(y.view(batch, heads, width).sum(dim=1) + constant)


def _attended(vector: Tensor, weights: MaskWeights, precision: str) -> tuple[Tensor, Tensor]:
    """(y [G*B, H, d], constant [G]) by the Triton operator, from vector [G, B, d] and grouped weights."""
    from .jit import mask as jit

    groups, batch, width = vector.shape
    heads, hidden = weights.num_heads, weights.hidden
    head = hidden // heads
    more = jit.padded_head(head) - head
    extra = jit.padded_values(heads) - heads
    dtype = torch.bfloat16 if precision == "bf16" else weights.embed_weight.dtype
    scale = math.log2(math.e) / math.sqrt(head)
    g, constant = weights.values()

    def by_head(w: Tensor) -> Tensor:  # [G, h, ...] -> [G, H * padded, ...]
        split = w.unflatten(1, (heads, head))
        return pad(split, (0, 0) * (w.dim() - 2) + (0, more)).flatten(1, 2)

    w_q, w_k = weights.in_proj_weight[:, :hidden], weights.in_proj_weight[:, hidden : 2 * hidden]
    b_q = by_head(weights.in_proj_bias[:, :hidden] * scale)
    columns = torch.cat([by_head(w_q * scale), by_head(w_k), pad(g, (0, 0, 0, extra))], dim=1).to(dtype)
    bias = pad(b_q, (0, columns.shape[1] - b_q.shape[1])).to(dtype)
    tokens = _linear(vector.to(dtype), weights.embed_weight.to(dtype), weights.embed_bias.to(dtype))
    packed = _linear(tokens.view(groups, batch * width, hidden), columns, bias)
    y, _ = jit.scalar_attention(packed.view(groups * batch, width, columns.shape[1]), heads, head,
                                "tf32" if precision == "bf16" else precision)  # fmt: skip
    return y, constant


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [G, B, i], weight [G, o, i], bias [G, o]; a lone group takes the product whose epilogue adds the bias."""
    if len(x) == 1:
        return torch.nn.functional.linear(x[0], weight[0], bias[0]).unsqueeze(0)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _precision(asked: str | None) -> str:
    """What products of float32 are made of: torch's own switch, unless told."""
    if asked is None:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    if asked not in PRECISIONS:
        raise ValueError(f"precision={asked!r}: must be one of {', '.join(PRECISIONS)}, or None for torch's own switch")
    return asked


def mask_values(vector: Tensor, weights: MaskWeights, precision: str | None = None) -> Tensor:
    """The mask in (0, 1) that a MaskNet gives a vector (paper, mask module).

    Args:
        vector: [B, d]; with grouped weights [G, B, d].
        weights: see `MaskWeights`.
        precision: "tf32" or "ieee" products of float32, or "bf16" arithmetic, of the Triton form; None follows
            `torch.set_float32_matmul_precision`. The plain form computes in the weights' dtype.

    Returns:
        [B, d] or [G, B, d] mask, in the weights' dtype; differentiable once (a second derivative raises RuntimeError).

    Raises:
        ValueError: shapes, dtypes or precision that don't fit.
    """
    precision = _check(vector, weights, precision)
    if not _triton(vector, weights):
        return mask_values_reference(vector, weights)
    grouped = vector if vector.dim() == 3 else vector.unsqueeze(0)
    y, constant = _attended(grouped, weights.grouped(), precision)
    logit = y.sum(dim=1).unflatten(0, grouped.shape[:2]) + constant.to(y.dtype).view(-1, 1, 1)
    return torch.sigmoid(logit).view(vector.shape).to(weights.embed_weight.dtype)


def masked_reconstruction(
    feature: Tensor, weights: MaskWeights, vector: Tensor | None = None, precision: str | None = None
) -> Tensor:
    """The reconstructed feature: its mask times itself (paper, mask module).

    Args:
        feature: [B, d] vectors, [B, d, H, W] maps or [B, S, d] tokens; with grouped weights a leading G.
        weights: see `MaskWeights`.
        vector: [B, d], what the mask is computed from; None: the feature itself where it is a vector, else the mean
            over its positions.
        precision: see `mask_values`.

    Returns:
        Of the feature's shape and dtype.

    Raises:
        ValueError: shapes, dtypes or precision that don't fit.
    """
    lead = 2 if weights.embed_weight.dim() == 3 else 1
    rest = feature.dim() - lead
    if rest not in (1, 2, 3):
        raise ValueError(f"feature: shape {list(feature.shape)}; must be [B, d], [B, d, H, W] or [B, S, d]")
    if vector is None:
        vector = feature if rest == 1 else feature.mean(dim=lead if rest == 2 else (-2, -1))
    precision = _check(vector, weights, precision)
    width = feature.shape[-1] if rest == 2 else feature.shape[lead]
    if feature.shape[:lead] != vector.shape[:lead] or width != vector.shape[-1]:
        raise ValueError(
            f"feature: shape {list(feature.shape)} has no {vector.shape[-1]} features for a mask of "
            f"{list(vector.shape)}"
        )
    if not _triton(vector, weights):
        return apply_mask(feature, mask_values_reference(vector, weights))
    from .jit.apply_mask import apply

    grouped = vector if lead == 2 else vector.unsqueeze(0)
    y, constant = _attended(grouped, weights.grouped(), precision)
    flat = feature.flatten(0, 1) if lead == 2 else feature
    # as [instances, d, positions], without copying
    if rest == 1:
        out = apply(y, constant, flat.unsqueeze(-1))[0].squeeze(-1)
    elif rest == 2:
        out = apply(y, constant, flat.transpose(1, 2))[0].transpose(1, 2)
    else:
        out = apply(y, constant, flat.flatten(2))[0].unflatten(2, flat.shape[2:])
    return out.unflatten(0, feature.shape[:lead])


def apply_mask(feature: Tensor, mask: Tensor) -> Tensor:
    """feature * mask, the mask [..., d] broadcast over what follows the feature's width (before it: tokens).

    Args:
        feature: [B, d] vectors, [B, d, H, W] maps or [B, S, d] token sequences; or with the mask's own leading axes.
        mask: [B, d].
    """
    mask = mask.to(feature.dtype)
    rest = feature.dim() - mask.dim()
    if rest == 1:
        return feature * mask.unsqueeze(-2)
    return feature * mask.reshape(mask.shape + (1,) * rest)


def _triton(vector: Tensor, weights: MaskWeights) -> bool:
    return use_triton(vector, weights.embed_weight) and weights.hidden // weights.num_heads <= MAX_HEAD


def _check(vector: Tensor, weights: MaskWeights, precision: str | None) -> str:
    """The precision; raises ValueError, naming the argument, for what doesn't fit."""
    check_floating(vector=vector, weights=weights.embed_weight)
    grouped = weights.embed_weight.dim() == 3
    width = weights.embed_weight.shape[-1]
    if vector.dim() != (3 if grouped else 2) or vector.shape[-1] != width:
        wanted = f"[{len(weights.embed_weight)}, B, {width}]" if grouped else f"[B, {width}]"
        raise ValueError(f"vector: shape {list(vector.shape)}; must be {wanted}")
    if grouped and len(vector) != len(weights.embed_weight):
        raise ValueError(f"vector: {len(vector)} groups; the weights have {len(weights.embed_weight)}")
    if weights.embed_weight.shape[-2] != width * weights.hidden or weights.hidden % weights.num_heads:
        raise ValueError(
            f"weights: embed_weight {list(weights.embed_weight.shape)}, hidden {weights.hidden}, heads "
            f"{weights.num_heads}: must be [d*h, d] with d={width}, and heads a divisor of h"
        )
    return _precision(precision)
