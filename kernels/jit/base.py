"""What the launchers share: types, sizes, partial sums, alignment, and refusal of second derivatives."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..launch import wide

# Every launch says so itself: Triton's own default is announced to change.
FUSE_MULTIPLY_ADD = True


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


def alignment(*numbers: int) -> int:
    """The largest power of two up to 16 that divides all numbers other than 1: loads may be that many elements wide."""
    return math.gcd(16, *(n for n in numbers if n != 1))


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
