"""How a convolution on the CPU lays its results, and what it holds for a moment.

oneDNN computes in blocked layouts, to which maps are copied. Seen in the allocator's events: forward the input and the
result in blocks, then the result in both layouts; backward the gradients of result and input in blocks, the latter
twice, then the gradient of the result with the input in blocks while the gradient of the input waits. Channels are
filled up to whole blocks, of 16 with AVX-512 and else of 8; channels-last memory is read as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


def scratch(func: Any, args: Sequence[Any], out: Any) -> float:
    """Bytes that a convolution holds at most beside its operands and beyond its results; 0 for other operators."""
    packet = func._overloadpacket
    wide = "512" in torch.backends.cpu.get_cpu_capability()
    block = 16 if wide else 8
    if packet is _aten.convolution:
        x, weight = args[0], args[1]
        # a single channel is read as it is, and so are a few where blocks are wide
        read = _blocked(x, block) if x.shape[1] >= (16 if wide else 2) else 0.0
        return max(read + _blocked(out, block) + weight.nbytes - out.nbytes, _blocked(out, block))
    if packet is _aten.convolution_backward:
        grad, x, weight, stride, mask = args[0], args[1], args[2], args[4], args[-1]
        results = sum(part.nbytes for part in out if part is not None)
        few = wide and x.shape[1] < 16
        # with steps, few channels are read channels-last, where none are filled up
        inner = 1 if few and max(stride) > 1 else block
        towards_input = _blocked(grad, inner) + _blocked(x, inner) + weight.nbytes if mask[0] else 0.0
        copied = x.nbytes + _blocked(x, inner) + x.nbytes if mask[0] else 0.0
        outer = 8 if few and x.shape[1] > 1 else block
        read = _blocked(x, outer) if x.shape[1] > 1 or not wide else 0.0
        towards_weight = (x.nbytes if mask[0] else 0) + _blocked(grad, outer) + read + 2 * weight.nbytes
        return max(0.0, max(towards_input, copied, towards_weight) - results)
    return 0.0


def laid(func: Any, args: Sequence[Any], out: Any) -> Any:
    """A fake convolution's results as they are laid: channels-last where its weight is, which fake ones aren't told."""
    packet = func._overloadpacket
    if packet is _aten.convolution and _last(args[1]):
        return torch.empty_like(out, memory_format=torch.channels_last)
    if packet is _aten.convolution_backward and _last(args[2]):
        towards, *rest = out
        return (None if towards is None else torch.empty_like(towards, memory_format=torch.channels_last), *rest)
    return out


def lay_weights(module: nn.Module, *_: object, memory_format: torch.memory_format | None = None, **__: object) -> Any:
    """In the place of `nn.Module.to`, which would swap a parameter for a converted one: fake ones can't be."""
    for parameter in module.parameters() if memory_format is not None else ():
        if parameter.dim() == 4:
            parameter.data = torch.empty_like(parameter, memory_format=memory_format)
    return module


def _last(x: Tensor) -> bool:
    """Whether maps are laid channels-last, in a way that torch takes for it."""
    return x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def _blocked(x: Tensor, block: int) -> float:
    """Bytes of maps [B, C, ...] with their channels filled up."""
    return x.nbytes / x.shape[1] * math.ceil(x.shape[1] / block) * block
