"""The operator over the three KD kernels: `mstdistill::distil`, its shapes for torch.compile and its gradients.

The forward launch leaves the gradient at the student, already scaled; backward multiplies it by the outer gradient in
place, and a row whose outer gradient is 1 (the usual `loss.sum().backward()`) is neither read nor written again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import wide
from ..tiles import choose, device_names
from . import kd_dense, kd_rows, kd_wide
from .base import FUSE_MULTIPLY_ADD, acc_type, aligned, alignment, on_device, pow2

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def scale_rows(x_ptr, factor_ptr, width, per_row, stride, BLOCK: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr):
    """x [B, width] times factor [B] in place; rows with factor 1 are left as they are. `per_row` blocks take a row."""
    if ALIGN > 1:
        width = aligned(width, ALIGN)
    block = tl.program_id(0).to(tl.int64)
    row = block // per_row
    factor = tl.load(factor_ptr + row * stride).to(ACC)
    if factor != 1.0:
        lane = block % per_row * BLOCK + tl.arange(0, BLOCK)
        at = x_ptr + row * width + lane
        x = tl.load(at, mask=lane < width).to(ACC) * factor
        tl.store(at, x.to(x_ptr.dtype.element_ty), mask=lane < width)


@torch.library.custom_op("mstdistill::scale_rows_", mutates_args=("x",))
def scale_rows_(x: Tensor, factor: Tensor) -> None:
    """x [B, ...] contiguous, times factor [B], in place."""
    if x.numel() == 0:
        return
    width = x[0].numel()
    choice = choose("scale_rows", pow2(width), where=device_names(x.device))
    block = min(choice["block"], pow2(width))
    per_row = triton.cdiv(width, block)
    with on_device(x):
        scale_rows[(len(x) * per_row,)](
            x, factor, width, per_row, factor.stride(0), BLOCK=block, ALIGN=alignment((width,)), ACC=acc_type(x.dtype),
            num_warps=choice["warps"], enable_fp_fusion=FUSE_MULTIPLY_ADD,
        )  # fmt: skip


@scale_rows_.register_fake
def _(x: Tensor, factor: Tensor) -> None:
    return None


def shapes_of(student: Tensor, teachers: Tensor, indices: Tensor | None, mixture: bool,
            gradients: tuple[bool, bool, bool]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # fmt: skip
    """Shape and type of each result; a gradient that nobody wants is empty."""
    batch, acc = student.shape[0], wide(torch.promote_types(student.dtype, teachers.dtype))
    chosen = teachers.shape[1] if indices is None else indices.shape[1]
    want_student, want_weights, want_reference = gradients
    # unscaled gradients underflow in float16
    own = torch.float32 if student.dtype == torch.float16 else student.dtype
    shape = tuple(student.shape)
    return {
        "loss": ((batch,), acc),
        "kd": ((batch,), acc),
        "task": ((batch,), acc),
        "grad": (shape if want_student else (0,), own),
        "each": ((batch, chosen) if want_weights and not mixture else (0,), acc),
        "reference": (shape if want_reference or (want_weights and mixture) else (0,), acc),
    }


@torch.library.custom_op("mstdistill::distil", mutates_args=())
def distil(
    student: Tensor,
    teachers: Tensor,
    rows: Tensor | None,
    indices: Tensor | None,
    weights: Tensor | None,
    label: Tensor | None,
    kd_scale: Tensor | None,
    task_scale: Tensor | None,
    temperature: float,
    mixture: bool,
    ignore_index: int,
    student_grad: bool,
    weights_grad: bool,
    reference_grad: bool,
) -> Outputs:
    """(loss, kd, task: [B]; gradients at the student, the weights [B, K] and the one reference, or empty).

    student [B, C] or [B, C, P]; teachers [N, M, C] or [N, M, C, P]. See `mstdistill.kernels.routed_kd`.
    """
    shapes = shapes_of(student, teachers, indices, mixture, (student_grad, weights_grad, reference_grad))
    out = {name: torch.empty(shape, dtype=dtype, device=student.device) for name, (shape, dtype) in shapes.items()}
    if label is None:
        out["task"].zero_()
    if student.numel() == 0:
        for name in ("loss", "kd", "task", "each"):
            out[name].zero_()
        return tuple(out.values())  # type: ignore[return-value]
    given = {"rows": rows, "indices": indices, "weights": weights, "label": label, "kd_scale": kd_scale,
             "task_scale": task_scale}  # fmt: skip
    flags: dict[str, Any] = {name.upper(): x is not None for name, x in given.items()}
    flags |= {"K": teachers.shape[1] if indices is None else indices.shape[1], "MIXTURE": mixture,
              "GRAD": student_grad, "EACH": out["each"].numel() > 0,
              "REFERENCE": out["reference"].numel() > 0}  # fmt: skip
    tensors = {name: student if x is None else x.contiguous() for name, x in given.items()}
    if student.dim() == 3:
        form: Any = kd_dense
    else:
        form = kd_rows if student.shape[1] <= kd_rows.LARGEST else kd_wide
    with on_device(student):
        form.launch(student, teachers, tensors, out, flags, temperature, ignore_index)
    return tuple(out.values())  # type: ignore[return-value]


@distil.register_fake
def _(
    student: Tensor,
    teachers: Tensor,
    rows: Tensor | None,
    indices: Tensor | None,
    weights: Tensor | None,
    label: Tensor | None,
    kd_scale: Tensor | None,
    task_scale: Tensor | None,
    temperature: float,
    mixture: bool,
    ignore_index: int,
    student_grad: bool,
    weights_grad: bool,
    reference_grad: bool,
) -> Outputs:
    shapes = shapes_of(student, teachers, indices, mixture, (student_grad, weights_grad, reference_grad))
    return tuple(student.new_empty(shape, dtype=dtype) for shape, dtype in shapes.values())  # type: ignore[return-value]


def setup(ctx: Any, inputs: Any, output: Any) -> None:
    student, teachers, rows, _, weights, *_ = inputs
    mixture = inputs[9]
    loss, kd, task, grad, each, reference = output
    ctx.mark_non_differentiable(kd, task, grad, each, reference)
    ctx.set_materialize_grads(False)
    ctx.want_student, ctx.want_weights, ctx.want_reference = inputs[11:14]
    ctx.mixture = mixture
    ctx.types = (student.dtype, teachers.dtype, weights.dtype if weights is not None else None)
    ctx.save_for_backward(loss, grad, each, reference, teachers if mixture and inputs[12] else None, rows)


class _Once(torch.autograd.Function):
    """A gradient that can't be differentiated: the error comes where someone tries, not before."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, anchor: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("mstdistill.kernels: distil can be differentiated once; use MSTDISTILL_KERNELS=torch")


def backward(ctx: Any, outer: Any, *_: Any) -> Any:
    grads: list[Any] = [None] * 14
    if outer is None:
        return tuple(grads)
    try:
        loss, grad, each, reference, teachers, rows = ctx.saved_tensors
    except RuntimeError:
        raise RuntimeError(
            "mstdistill.kernels: backward through distillation_loss runs once, it scales its gradient in place; "
            "compute the loss again, or use MSTDISTILL_KERNELS=torch"
        ) from None
    if ctx.want_student:
        torch.ops.mstdistill.scale_rows_(grad, outer)
        grads[0] = grad.to(ctx.types[0])
    if ctx.want_reference or (ctx.want_weights and ctx.mixture):
        torch.ops.mstdistill.scale_rows_(reference, outer)
        if ctx.want_reference:
            grads[1] = reference.unsqueeze(1).to(ctx.types[1])
    if ctx.want_weights and ctx.mixture:
        # one teacher at a time: a copy of all of them could be larger than everything else
        each_teacher = (teachers[:, m] if rows is None else teachers[rows, m] for m in range(teachers.shape[1]))
        flat = reference.flatten(1)
        columns = [(z.flatten(1).to(flat.dtype) * flat).sum(dim=1) for z in each_teacher]
        grads[4] = torch.stack(columns, dim=1).to(ctx.types[2])
    elif ctx.want_weights:
        grads[4] = (each * outer.unsqueeze(1)).to(ctx.types[2])
    if torch.is_grad_enabled():
        grads = [None if x is None else _Once.apply(x, loss) for x in grads]
    return tuple(grads)


distil.register_autograd(backward, setup_context=setup)
