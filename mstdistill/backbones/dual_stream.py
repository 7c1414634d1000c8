"""CNN-I, the multimodal network of AV-MNIST (paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lenet import LeNetFeatures
from .registry import register


class AudioNet(nn.Module):
    """[B, 1, 112, 112] spectrograms to [B, 16 * width] features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 3, padding=1)
        self.conv5 = nn.Conv2d(8 * width, 16 * width, 3, padding=1)

    def forward(self, audio: Tensor) -> Tensor:
        x = audio
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(F.max_pool2d(conv(x), 2))  # max and ReLU commute exactly
        return F.relu(self.conv5(x)).mean(dim=(2, 3))


@register("CNN-I", ((1, 28, 28), (1, 112, 112)), "image and audio CNNs fused by concatenation (paper, AV-MNIST)")
class CNNI(nn.Module):
    """Images [B, 1, 28, 28] and spectrograms [B, 1, 112, 112] to logits [B, C].

    Nothing stands between its last two Linears.

    Args:
        width: channels of the first audio convolution; the paper's is 32.
    """

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.AudioNet = AudioNet(width)
        self.ImageNet = LeNetFeatures()
        self.concat_identity = nn.Identity()
        joined = 84 + 16 * width
        self.fc1 = nn.Linear(joined, joined // 2)
        self.fc2 = nn.Linear(joined // 2, num_classes)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        joined = self.concat_identity(torch.cat([self.ImageNet(image), self.AudioNet(audio)], dim=1))
        logits: Tensor = self.fc2(self.fc1(joined))
        return logits
