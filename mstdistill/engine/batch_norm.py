"""Batch norms while something trains: over all processes, and on batches that leave a single number per channel.

A single number has no variance. The rule, the same for one process and several: a batch norm that would see one number
per channel, over all processes, uses its running statistics for that batch and leaves them as they are, as in eval
mode. One without running statistics takes the number as its own mean: what it gives is its bias, in eval mode too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import ranks

# Types whose forward is PyTorch's own: another one may hold more than a norm, an activation for example.
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _AnyBatch(_BatchNorm):
    """What makes a batch norm keep the rule; always together with the norm's own type."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 1 and x.numel() == x.size(1) and (self.training or self.running_mean is None):
            return self._single(x)
        return super().forward(x)

    def _single(self, x: Tensor) -> Tensor:
        if self.running_mean is None:
            return _bias_alone(self, x)
        was_training, self.training = self.training, False
        try:
            return super().forward(x)
        finally:
            self.training = was_training


def _bias_alone(norm: _BatchNorm, x: Tensor) -> Tensor:
    """A number normalised by itself is 0; weight and bias stay in the graph, which DDP wants."""
    normal = x - x
    if norm.affine:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(x.dtype)


@cache
def _any_batch(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(kind.__name__, (_AnyBatch, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def take_any_batch(module: nn.Module) -> list[nn.Module]:
    """Have a module's batch norms keep the rule; names, parameters and what they are instances of stay.

    Returns:
        Those that didn't yet, for `take_back`.
    """
    changed: list[nn.Module] = []
    for norm in module.modules():
        lazy = isinstance(norm, nn.modules.lazy.LazyModuleMixin)
        if isinstance(norm, _BatchNorm) and not isinstance(norm, (_AnyBatch, OverProcesses)) and not lazy:
            norm.__class__ = _any_batch(type(norm))  # type: ignore[arg-type]  # a type is hashable
            changed.append(norm)
    return changed


def take_back(norms: Iterable[nn.Module]) -> None:
    """Undo `take_any_batch`."""
    for norm in norms:
        if isinstance(norm, _AnyBatch):
            norm.__class__ = type(norm).__bases__[1]


class Rows:
    """Which processes have instances in the current micro-batch: one that has none holds a row that doesn't count."""

    def __init__(self) -> None:
        self.short, self.counts = False, True

    def look(self, instances: float) -> None:
        """Take note of a micro-batch of so many instances over all processes."""
        self.short = instances < ranks.world_size()
        self.counts = not self.short or ranks.rank() < round(instances)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        return self


@contextmanager
def over_processes(module: nn.Module) -> Iterator[Rows]:
    """Within the block a module's batch norms take their figures from all processes' rows, and any batch.

    Parameters, buffers and names stay; `nn.SyncBatchNorm` where they lie on a GPU. Types with a forward of their own
    keep it, with figures of their process's rows.
    """
    rows, changed = Rows(), take_any_batch(module)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(module.modules()) if ranks.world_size() > 1 else ():
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and _kind(child) in _PLAIN:
                setattr(parent, name, _joined(child, rows))
                replaced.append((parent, name, child))
    try:
        yield rows
    finally:
        for parent, name, child in replaced:
            child.train(parent.training)
            setattr(parent, name, child)
        take_back(changed)


def own_kinds(module: nn.Module) -> set[str]:
    """Types of batch norms that `over_processes` leaves alone."""
    return {_kind(norm).__name__ for norm in module.modules() if isinstance(norm, _BatchNorm)
            and _kind(norm) not in (*_PLAIN, OverProcesses, _Synchronised)}  # fmt: skip


def _kind(norm: _BatchNorm) -> type[nn.Module]:
    kind: type[nn.Module] = type(norm).__bases__[1] if isinstance(norm, _AnyBatch) else type(norm)
    return kind


def _joined(norm: _BatchNorm, rows: Rows) -> nn.Module:
    on_gpu = any(x.is_cuda for x in (*norm.parameters(), *norm.buffers()))
    twin: OverProcesses = (_Synchronised if on_gpu else OverProcesses)(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    twin.rows = rows
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

    Attributes:
        rows: who has rows that count.
    """

    rows = Rows()

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm wants [B, C, ...], got {list(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            alone = self.running_mean is None and x.dim() > 1 and x.numel() == x.size(1)
            return _bias_alone(self, x) if alone else super().forward(x)
        return self._over_processes(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        here = wide.new_tensor([x.numel() / x.shape[1]])
        first = _sum_over_processes(self._counted(torch.cat([wide.sum(dim=axes), here])))
        count = first[-1].detach()
        # off the CPU a look at the count would wait for it: only a short batch can be that small there
        if (x.device.type == "cpu" or self.rows.short) and float(count) <= 1:
            return self._single(x)
        mean = first[:-1] / count
        centred = wide - mean.view(shape)
        variance = _sum_over_processes(self._counted((centred * centred).sum(dim=axes))) / count
        self._note(mean.detach(), variance.detach(), count)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _counted(self, sums: Tensor) -> Tensor:
        return sums if self.rows.counts else sums * 0

    def _single(self, x: Tensor) -> Tensor:
        if self.running_mean is None:
            return _bias_alone(self, x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

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


class _Synchronised(OverProcesses, nn.SyncBatchNorm):
    """PyTorch's for GPUs, which counts every process's rows; a batch that leaves some without is computed as above."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.rows.short:
            return nn.SyncBatchNorm.forward(self, x)
        return OverProcesses.forward(self, x)
