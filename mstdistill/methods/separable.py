"""The two halves of a depthwise-separable convolution, quick on the few positions that hidden features have.

On a CPU a convolution of a map of 2 x 2 positions costs a hundred times what its sums do. There both halves are
products of matrices: the same sums in another order, equal to float32 rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# positions of an instance up to which matrices won (av-digits' shapes, one core, forward and backward)
_FEW = 16


def _is_small(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[2] * x.shape[3] <= _FEW


class Depthwise(nn.Conv2d):
    """A 3 x 3 filter for each channel: [B, c, H, W] -> [B, c, H / stride, W / stride]."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self._taps: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not _is_small(x):
            return super().forward(x)
        height, width = x.shape[2:]
        taps = self._taps_of(height, width, x)
        outputs = taps.shape[1] // (height * width)
        matrices = (self.weight.flatten(1) @ taps).view(-1, height * width, outputs)
        maps = torch.bmm(x.flatten(2).transpose(0, 1), matrices).transpose(0, 1)
        return maps.reshape(*x.shape[:2], -(-height // self.stride[0]), -(-width // self.stride[0]))

    def _taps_of(self, height: int, width: int, x: Tensor) -> Tensor:
        """[9, inputs * outputs]: 1 where a place of the filter leads from an input's position to an output's."""
        key = (height, width, x.dtype)
        if key not in self._taps:
            positions = torch.eye(height * width, dtype=x.dtype).view(-1, 1, height, width)
            seen = F.unfold(positions, 3, padding=1, stride=self.stride[0])
            self._taps[key] = seen.transpose(0, 1).reshape(9, -1)
        return self._taps[key]


class Pointwise(nn.Conv2d):
    """A product over the channels: [B, a, H, W] -> [B, b, H, W]."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not _is_small(x):
            return super().forward(x)
        return F.linear(x.movedim(1, -1), self.weight.flatten(1)).movedim(-1, 1)
