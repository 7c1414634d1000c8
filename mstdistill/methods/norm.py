"""Batch norms of small heads: a training batch that leaves one number per channel has no variance, and a last short
batch may be such; it takes the running figures, where PyTorch would refuse it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _AnyBatch(nn.modules.batchnorm._BatchNorm):
    """A batch norm for batches down to one instance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class BatchNorm1d(_AnyBatch, nn.BatchNorm1d):
    """For [B, d]."""


class BatchNorm2d(_AnyBatch, nn.BatchNorm2d):
    """For [B, C, H, W]."""
