"""Comparing a Triton form with float64: the device, types with their tolerances, drawing and differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from mstdistill.kernels.launch import triton_missing
from torch import Tensor

# Where there is no Triton, tests of its forms are skipped or left out; see conftest.py.
TRITON = not triton_missing()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# dtype of the inputs, relative tolerance against float64 on the same (rounded) inputs; half precision rounds gradients
DTYPES = [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]


def jit(name: str) -> Any:
    """A file of Triton's forms; None where there is no Triton."""
    return import_module(f"mstdistill.kernels.jit.{name}") if TRITON else None


def draw(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for each seed."""
    g = torch.Generator().manual_seed(seed + 7919 * len(shape) + sum(shape))
    return (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype).to(DEVICE)


def differences(
    fast: Callable[..., Sequence[Tensor]],
    plain: Callable[..., Sequence[Tensor]],
    learns: Sequence[Tensor],
    seed: int = 0,
) -> list[float]:
    """Relative differences of outputs, then of the gradients at `learns`; `plain` gets float64 copies of them.

    Each returns its differentiable outputs; they are summed under one random weighting.
    """
    found = []
    for form, wide in ((fast, False), (plain, True)):
        leaves = [(x.double() if wide else x).detach().clone().requires_grad_(True) for x in learns]
        outputs = form(*leaves)
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for number, out in enumerate(outputs):
            total = total + (out.double() * draw(*out.shape, seed=seed + number, scale=1.0)).sum()
        total.backward()
        found.append([*outputs, *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)])
    return [relative(a, b) for a, b in zip(*found, strict=True)]


def relative(found: Tensor, wanted: Tensor) -> float:
    """max |a - b| / max(1, max |b|); NaN must meet NaN, infinity the same infinity."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if wanted.numel() == 0:
        return 0.0
    a, b = found.detach().double(), wanted.detach().double()
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.isinf(), b.isinf())
    finite = b.isfinite()
    if not finite.any():
        return 0.0
    return float((a[finite] - b[finite]).abs().max() / b[finite].abs().max().clamp(min=1.0))
