"""What the launchers share: types, sizes, partial sums, alignment, and refusal of second derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import wide

# Every launch says so itself: Triton's own default is announced to change.
FUSE_MULTIPLY_ADD = True


@triton.jit
def aligned(x, ALIGN: tl.constexpr):
    """A size that is a multiple of ALIGN, so that the compiler knows it; `tl.multiple_of` says nothing of arguments."""
    return x // ALIGN * ALIGN


def acc_type(dtype: torch.dtype) -> Any:
    """Triton's type for sums."""
    return tl.float64 if wide(dtype) == torch.float64 else tl.float32


def pow2(n: int) -> int:
    """The smallest power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def no_second_derivative(op: Any, name: str) -> None:
    """Make differentiating a backward operator an error that says so."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"mstdistill.kernels: {name} can be differentiated once; use MSTDISTILL_KERNELS=torch")

    op.register_autograd(backward, setup_context=setup)


def alignment(sizes: Sequence[int], *tensors: Tensor, lane: int = -1) -> int:
    """How many elements a load may take at once, up to 16: what divides the sizes and, but for the lanes' axis, all
    strides; 1 where a tensor isn't contiguous along its lanes."""
    if any(x.stride(lane) != 1 and x.shape[lane] > 1 for x in tensors):
        return 1
    skipped = [lane % x.dim() for x in tensors]
    strides = [x.stride(axis) for x, own in zip(tensors, skipped, strict=True) for axis in range(x.dim())
               if axis != own and x.shape[axis] > 1]  # fmt: skip
    return math.gcd(16, *sizes, *strides)


_SUMMED = ("loss", "kd", "task", "each")


def parts_of(out: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The results with room for `count` partial sums each where they are sums; the gradients as they are."""
    if count == 1:
        return out
    return {name: x.new_empty(*x.shape, count) if name in _SUMMED else x for name, x in out.items()}


def add_up(parts: dict[str, Tensor], out: dict[str, Tensor], flags: dict[str, Any]) -> None:
    """Add the partial sums, always in one order."""
    for name in _SUMMED:
        written = out[name].numel() and (name != "task" or flags["LABEL"])
        if written and parts[name] is not out[name]:
            torch.sum(parts[name], dim=-1, out=out[name])


def on_device(x: Tensor) -> Any:
    """Launch on the tensor's own GPU, whichever is current."""
    return torch.cuda.device(x.device) if x.is_cuda else _Nothing()


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *why: object) -> None:
        pass
