"""What a convolution on the CPU holds for a moment: oneDNN computes in blocked layouts, to which maps are copied.

Seen in the allocator's events: forward the input and the result in blocks, then the result in both layouts; backward
the gradients of result and input in blocks, the latter twice, then the gradient of the result with the input in blocks
while the gradient of the input waits. Channels are filled up to whole blocks; channels-last memory is read as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def scratch(func: Any, args: Sequence[Any], out: Any) -> float:
    """Bytes that a convolution holds at most beside its operands and beyond its results; 0 for other operators."""
    packet = func._overloadpacket
    if packet is _aten.convolution:
        x, weight = args[0], args[1]
        # a single channel is read as it is
        read = _blocked(x) if x.shape[1] > 1 else 0.0
        return max(read + _blocked(out) + weight.nbytes - out.nbytes, _blocked(out))
    if packet is _aten.convolution_backward:
        grad, x, weight, mask = args[0], args[1], args[2], args[-1]
        results = sum(part.nbytes for part in out if part is not None)
        towards_input = _blocked(grad) + _blocked(x) + weight.nbytes if mask[0] else 0.0
        copied = x.nbytes + _blocked(x) + x.nbytes if mask[0] else 0.0
        towards_weight = (x.nbytes if mask[0] else 0) + _blocked(grad) + _blocked(x) + 2 * weight.nbytes
        return max(0.0, max(towards_input, copied, towards_weight) - results)
    return 0.0


def _blocked(x: Tensor) -> float:
    """Bytes of maps [B, C, ...] with their channels filled up."""
    block = 16 if "512" in torch.backends.cpu.get_cpu_capability() else 8
    return x.nbytes / x.shape[1] * math.ceil(x.shape[1] / block) * block
