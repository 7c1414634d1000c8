"""ThreeLayerCNN-A, the audio network of AV-MNIST (paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import register


@register("ThreeLayerCNN-A", ((1, 112, 112),), "three convolutions for 112x112 spectrograms (paper, AV-MNIST)")
class ThreeLayerCNN(nn.Module):
    """[B, 1, 112, 112] spectrograms to logits [B, C].

    Args:
        width: channels of the first convolution; the paper's is 32.
    """

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.fc1 = nn.Linear(4 * width * 14 * 14, num_classes)

    def forward(self, audio: Tensor) -> Tensor:
        # max and ReLU commute exactly, and after the pool there is a quarter to rectify
        x = F.relu(F.max_pool2d(self.conv1(audio), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(F.max_pool2d(self.conv3(x), 2))
        logits: Tensor = self.fc1(x.flatten(1))
        return logits
