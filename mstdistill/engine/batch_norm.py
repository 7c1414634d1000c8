"""Batch norms over all processes: several processes with a small batch each train as one with a large batch does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import ranks


@contextmanager
def over_processes(module: nn.Module) -> Iterator[None]:
    """Within the block a module's batch norms that learn take their figures from all processes' rows.

    Parameters, buffers and names stay; `nn.SyncBatchNorm` where they lie on a GPU.
    """
    if ranks.world_size() == 1:
        yield
        return
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm) and _learns(child):
                setattr(parent, name, _joined(child))
                replaced.append((parent, name, child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(parent.training)
            setattr(parent, name, child)


def _learns(norm: _BatchNorm) -> bool:
    """A frozen teacher's batch norm stays as it is."""
    return not norm.affine or any(p.requires_grad for p in norm.parameters())


def _joined(norm: _BatchNorm) -> nn.Module:
    on_gpu = any(x.is_cuda for x in (*norm.parameters(), *norm.buffers()))
    twin: _BatchNorm = (nn.SyncBatchNorm if on_gpu else OverProcesses)(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(twin, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(twin, name, buffer)
    twin.train(norm.training)
    return twin


class _Sum(torch.autograd.Function):
    """The sum over the processes, forward; and of the gradients, backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return ranks.total(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return ranks.total(gradients[0])


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


class OverProcesses(_BatchNorm):
    """A batch norm whose mean and variance are those of all processes' rows, for the CPU, which PyTorch's has not.

    In float32 for half precision; gradients reach every process's rows.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm wants [B, C, ...], got {list(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        here = wide.new_tensor([x.numel() / x.shape[1]])
        first = _sum_over_processes(torch.cat([wide.sum(dim=axes), here]))
        count = first[-1].detach()
        mean = first[:-1] / count
        centred = wide - mean.view(shape)
        variance = _sum_over_processes((centred * centred).sum(dim=axes)) / count
        self._note(mean.detach(), variance.detach(), count)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running figures; the variance as of a sample."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), part)
