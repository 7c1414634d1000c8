"""The embedding that RKD and CRD compare features by: a Linear, then length 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A map of more numbers than this goes in by its mean over the positions: a Linear on all would dwarf the networks.
LARGEST = 65_536


class Embedding(nn.Module):
    """Features [B, d] or maps [B, C, H, W] to vectors [B, width] of length 1.

    A map is flattened, or beyond `LARGEST` numbers averaged over its positions.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)

    @staticmethod
    def width(shape: Sequence[int]) -> int:
        """Numbers that a feature of this shape (without batch) goes in with."""
        return math.prod(shape) if math.prod(shape) <= LARGEST else shape[0]

    def forward(self, feature: Tensor) -> Tensor:
        flat = feature.flatten(1)
        if flat.shape[1] != self.linear.in_features:
            flat = feature.mean(dim=(2, 3))
        vector: Tensor = self.linear(flat)
        # mixed precision ends here: relations of close neighbours are differences of nearly equal numbers
        return F.normalize(vector.float() if vector.dtype in (torch.float16, torch.bfloat16) else vector, dim=1)
