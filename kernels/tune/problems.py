"""What candidates are timed on: for each group a shape that fills a GPU, or a few rows for a rehearsal."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .candidates import Candidate

# [instances, features or tokens, positions] of each layout that the mask's last step meets; heads of the masks.
_LAYOUTS = {"vectors": (4096, 1024, 1), "tokens": (256, 768, 197), "maps": (128, 512, 1200)}
_HEADS = 3

Call = Callable[[], list[Tensor]]
Draw = Callable[..., Tensor]


def elements_of(candidate: Candidate) -> int:
    """Of the whole problem on a GPU."""
    return {
        "route": 65_536 * candidate.size, "kd_rows": 4096 * candidate.size,
        "bernoulli": 4096 * candidate.size, "kd_wide": 1024 * 32_768,
        "kd_dense": 6 * 480 * 640, "scale_rows": 4096 * 8192, "attend": 128 * _HEADS * 596**2,
        "attend_backward": 128 * _HEADS * 596**2,
    }.get(candidate.kernel) or math.prod(_LAYOUTS[candidate.kind])  # fmt: skip


def problem_of(candidate: Candidate, device: torch.device) -> Call:
    """What a candidate's group is timed on: a call of it that gives what it computes; on a CPU, in the interpreter, of
    two instances."""
    small = device.type == "cpu"
    g = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (3 * torch.randn(shape, generator=g, device=device)).to(dtype)

    size, dtype = candidate.size, torch.float32 if candidate.kind in ("float", "tf32") else torch.bfloat16
    match candidate.kernel:
        case "route":
            call = _routing(draw(2 if small else 65_536, size, dtype=dtype))
        case "kd_rows":
            call = _distilling(draw, (2 if small else 4096, size), (), dtype)
        case "bernoulli":
            call = _judging(draw, (2 if small else 4096, size), dtype)
        case "kd_wide":
            call = _distilling(draw, (2 if small else 1024, 5000 if small else 32_000), (), dtype)
        case "kd_dense":
            call = _distilling(draw, (2 if small else 6, 3 if small else 41), (4, 8) if small else (480, 640), dtype)
        case "scale_rows":
            call = _scaling(draw(2 if small else 4096, 8192))
        case "apply_mask":
            batch, d, positions = _LAYOUTS[candidate.kind]
            shape = (2, 32, min(positions, 16)) if small else (batch, d, positions)
            call = _masking(draw, shape, candidate.kind == "tokens", dtype)
        case _:
            backward = candidate.kernel == "attend_backward"
            call = _attending(draw, 2 if small else 128, 40 if small else 596, size, dtype, backward)
    return call


def _routing(logits: Tensor) -> Call:
    from ..router import route

    logits.requires_grad_(True)

    def call() -> list[Tensor]:
        found = route(logits, 1, None, "KL")
        assert found.balance is not None
        (grad,) = torch.autograd.grad(found.balance, [logits])
        return [found.log_probs.detach(), grad]

    return call


def _scaling(x: Tensor) -> Call:
    from ..jit.kd import scale_rows_

    factor = x.new_full((len(x),), -1.0)

    def call() -> list[Tensor]:
        scale_rows_(x, factor)
        return [x.abs()]  # whatever sign it has by now

    return call


def _distilling(draw: Draw, shape: tuple[int, int], dense: tuple[int, ...], dtype: torch.dtype
                ) -> Call:  # fmt: skip
    from ..routed_kd import distillation_loss

    batch, classes = shape
    student, teachers = draw(batch, classes, *dense, dtype=dtype), draw(batch, 4, classes, *dense, dtype=dtype)
    indices = torch.arange(4, device=student.device).expand(batch, 4).contiguous()
    label = torch.zeros(batch, *dense, dtype=torch.int64, device=student.device)
    student.requires_grad_(True)

    def call() -> list[Tensor]:
        loss = distillation_loss(student, teachers, indices, label=label).loss
        (grad,) = torch.autograd.grad(loss.sum(), [student])
        return [loss.detach(), grad]

    return call


def _judging(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Call:
    from ..bernoulli_kd import bernoulli_distillation

    batch, classes = shape
    student, teachers = draw(batch, classes, dtype=dtype), draw(batch, 4, classes, dtype=dtype)
    indices = torch.arange(4, device=student.device).expand(batch, 4).contiguous()
    label = (draw(batch, classes) > 0).to(torch.int64)
    student.requires_grad_(True)

    def call() -> list[Tensor]:
        loss = bernoulli_distillation(student, teachers, indices, label=label).loss
        (grad,) = torch.autograd.grad(loss.sum(), [student])
        return [loss.detach(), grad]

    return call


def _masking(draw: Draw, shape: tuple[int, int, int], tokens: bool, dtype: torch.dtype) -> Call:
    from ..jit import apply_mask  # noqa: F401  # defines the operators

    batch, d, positions = shape
    feature = draw(batch, positions, d, dtype=dtype).transpose(1, 2) if tokens else draw(*shape, dtype=dtype)
    y, constant = draw(batch, _HEADS, d), draw(1)

    def call() -> list[Tensor]:
        out, mask = torch.ops.mstdistill.apply_mask(y, constant, feature)
        delta, grad = torch.ops.mstdistill.apply_mask_backward(feature, None, mask, feature, True)
        return [out, delta, grad]

    return call


def _attending(draw: Draw, batch: int, d: int, head: int, dtype: torch.dtype, backward: bool
               ) -> Call:  # fmt: skip
    from ..jit import mask

    packed = 0.1 * draw(batch, d, 2 * _HEADS * head + mask.padded_values(_HEADS))
    packed = packed.to(dtype)
    y, lse = torch.ops.mstdistill.scalar_attention(packed, _HEADS, head, "tf32")
    delta = draw(batch, _HEADS, d)

    def call() -> list[Tensor]:
        if not backward:
            return list(torch.ops.mstdistill.scalar_attention(packed, _HEADS, head, "tf32"))
        return [torch.ops.mstdistill.scalar_attention_backward(delta, packed, y, lse, _HEADS, head, "tf32")]

    return call
