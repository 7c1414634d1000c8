"""CNN-I, the multimodal network of AV-MNIST (paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lenet import LeNetFeatures
from .registry import register


class AudioNet(nn.Module):
    """[B, 1, 112, 112] spectrograms to [B, 512] features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv4 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 512, 3, padding=1)

    def forward(self, audio: Tensor) -> Tensor:
        x = audio
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(F.max_pool2d(conv(x), 2))  # max and ReLU commute exactly
        return F.relu(self.conv5(x)).mean(dim=(2, 3))


@register("CNN-I", ((1, 28, 28), (1, 112, 112)), "image and audio CNNs fused by concatenation (paper, AV-MNIST)")
class CNNI(nn.Module):
    """Images [B, 1, 28, 28] and spectrograms [B, 1, 112, 112] to logits [B, C].

    Nothing stands between its last two Linears."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.AudioNet = AudioNet()
        self.ImageNet = LeNetFeatures()
        self.concat_identity = nn.Identity()
        self.fc1 = nn.Linear(596, 298)
        self.fc2 = nn.Linear(298, num_classes)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        joined = self.concat_identity(torch.cat([self.ImageNet(image), self.AudioNet(audio)], dim=1))
        logits: Tensor = self.fc2(self.fc1(joined))
        return logits
