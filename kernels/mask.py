"""MaskNet's attention in its collapsed form: scalar values, no output projection, no [B, H, d, d] tensor kept.

A MaskNet embeds a feature of width d into d tokens of width h, lets them attend to each other, and maps each to one
number through a sigmoid. Only that number leaves, so the value path collapses to a scalar per token and head:

    u = Wo' w,  g_a = (Wv^a)' u_a,  c = c0 + w.bo + u.bv
    q_i = (Wq x_i + bq) / sqrt(dh),  k_j = Wk x_j,  t_j = g_a . x_j      (bk adds a constant over j: softmax drops it)
    P = softmax_j(q_i . k_j),  y_i = sum_a sum_j P_ij t_j,  mask_i = sigmoid(y_i + c),  out = mask * feature

which is exact and takes 6 d^2 h FLOPs in place of 10 (h = d/2). Backward, with delta_i the gradient at y_i and
P recomputed from the saved log-sum-exp:

    dS_ij = delta_i P_ij (t_j - y_ia),  dq = dS k,  dk = dS' q,  dt_j = sum_i delta_i P_ij
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Score elements held at once: 16 MB in float32, small enough to stay near the processor's caches.
_CHUNK_ELEMENTS = 4 * 1024 * 1024


def _chunks(rows: int, width: int) -> range:
    return range(0, rows, max(1, _CHUNK_ELEMENTS // max(1, width * width)))


class _ScalarAttention(torch.autograd.Function):
    """y[n, i] = sum_j softmax_j(q_i . k_j) t_j for n = B*H rows, in chunks of rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        y, lse = torch.empty_like(t), torch.empty_like(t)
        step = _chunks(q.shape[0], q.shape[1])
        for start in step:
            part = slice(start, start + step.step)
            scores = torch.bmm(q[part], k[part].transpose(1, 2))
            peak = scores.amax(dim=2, keepdim=True)
            scores.sub_(peak).exp_()
            total = scores.sum(dim=2)
            y[part] = torch.bmm(scores, t[part].unsqueeze(2)).squeeze(2) / total
            lse[part] = peak.squeeze(2) + total.log()
        ctx.save_for_backward(q, k, t, y, lse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, t, y, lse = ctx.saved_tensors
        grad_q, grad_k, grad_t = torch.empty_like(q), torch.empty_like(k), torch.empty_like(t)
        step = _chunks(q.shape[0], q.shape[1])
        for start in step:
            part = slice(start, start + step.step)
            scores = torch.bmm(q[part], k[part].transpose(1, 2))
            scores.sub_(lse[part].unsqueeze(2)).exp_().mul_(grad_y[part].unsqueeze(2))
            grad_t[part] = scores.sum(dim=1)
            scores.mul_(t[part].unsqueeze(1) - y[part].unsqueeze(2))
            grad_q[part] = torch.bmm(scores, k[part])
            grad_k[part] = torch.bmm(scores.transpose(1, 2), q[part])
        return grad_q, grad_k, grad_t


def mask_values(
    feature: Tensor,
    embed_weight: Tensor,
    embed_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    num_heads: int,
) -> Tensor:
    """The mask in (0, 1) that a MaskNet gives a feature (paper, mask module).

    Args:
        feature: [B, d].
        embed_weight, embed_bias: [d*h, d], [d*h].
        in_proj_weight, in_proj_bias: [3h, h], [3h], as in `nn.MultiheadAttention`.
        out_proj_weight, out_proj_bias: [h, h], [h].
        fc_weight, fc_bias: [1, h], [1].
        num_heads: divides h.

    Returns:
        [B, d] mask, in the parameters' dtype; differentiable once (a second derivative raises RuntimeError).
    """
    batch, width = feature.shape
    hidden = out_proj_weight.shape[0]
    head = hidden // num_heads
    w_q, w_k, w_v = in_proj_weight.split(hidden)
    b_q, _, b_v = in_proj_bias.split(hidden)
    u = fc_weight @ out_proj_weight  # [1, h]
    g = torch.einsum("ad,adh->ah", u.view(num_heads, head), w_v.view(num_heads, head, hidden))
    constant = fc_bias + fc_weight @ out_proj_bias + u @ b_v

    tokens = torch.nn.functional.linear(feature.to(embed_weight.dtype), embed_weight, embed_bias)
    tokens = tokens.view(batch * width, hidden)
    scale = 1.0 / math.sqrt(head)
    q = torch.addmm(b_q * scale, tokens, (w_q * scale).t())
    k = tokens @ w_k.t()
    t = tokens @ g.t()

    def by_head(x: Tensor) -> Tensor:
        return x.view(batch, width, num_heads, head).transpose(1, 2).reshape(batch * num_heads, width, head)

    values = t.view(batch, width, num_heads).transpose(1, 2).reshape(batch * num_heads, width)
    y: Tensor = _ScalarAttention.apply(by_head(q), by_head(k), values)
    return torch.sigmoid(y.view(batch, num_heads, width).sum(dim=1) + constant)


def masked_reconstruction(feature: Tensor, mask: Tensor) -> Tensor:
    """The reconstructed feature: feature * mask, the mask [B, d] broadcast over what follows the feature's width.

    Args:
        feature: [B, d] vectors, [B, d, H, W] maps or [B, S, d] token sequences.
        mask: [B, d].
    """
    if feature.dim() == 3:
        return feature * mask.unsqueeze(1).to(feature.dtype)
    return feature * mask.to(feature.dtype).reshape(mask.shape + (1,) * (feature.dim() - 2))
