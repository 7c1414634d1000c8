"""The mask's attention as a GPU runs it: one kernel each way, no scores in memory.

Here, without a GPU, the plain form would run in chunks, thousands of operators that hold score matrices for a moment.
This stands in its place while a plan for a GPU is made: the same tensors in, out and saved, and the same FLOPs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ledger import Ledger, Work


class FusedAttention(torch.autograd.Function):
    """As `kernels.mask._ScalarAttention`: q, k [n, d, dh] and t [n, d] to y [n, d]; values are not computed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        y, lse = torch.zeros_like(t), torch.zeros_like(t)
        ctx.save_for_backward(q, k, t, y, lse)
        # scores, their exponentials' sum and the product with t
        _note(2 * q.numel() * q.shape[1] + 2 * t.numel() * t.shape[1], q, k, t, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, t, y, lse = ctx.saved_tensors
        found = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(t)
        # scores again, then their gradient's products with k and q, and its sums
        _note(6 * q.numel() * q.shape[1] + 2 * t.numel() * t.shape[1], q, k, t, y, lse, grads[0], *found)
        return found


def _note(flops: int, *tensors: Tensor) -> None:
    if Ledger.active is not None:
        Ledger.active.note(Work(flops, sum(x.nbytes for x in tensors)))
