"""Small networks for av-digits: 8x8 images and 32x32 spectrograms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import register


class _ImageTrunk(nn.Module):
    """[B, 1, 8, 8] -> [B, 4 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * 4, 4 * width)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        feature: Tensor = self.fc1(x.flatten(1))
        return feature


class _AudioTrunk(nn.Module):
    """[B, 1, 32, 32] -> [B, 4 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(2 * width * 16, 4 * width)

    def forward(self, audio: Tensor) -> Tensor:
        x = audio
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        feature: Tensor = self.fc1(x.flatten(1))
        return feature


@register("digits-image", ((1, 8, 8),), "small CNN for 8x8 digits (av-digits)")
class DigitsImage(nn.Module):
    """[B, 1, 8, 8] images to logits [B, C]."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.trunk = _ImageTrunk(width)
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.fc2(F.relu(self.trunk(image)))
        return logits


@register("digits-audio", ((1, 32, 32),), "small CNN for 32x32 log-mel spectrograms (av-digits)")
class DigitsAudio(nn.Module):
    """[B, 1, 32, 32] spectrograms to logits [B, C]."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.trunk = _AudioTrunk(width)
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, audio: Tensor) -> Tensor:
        logits: Tensor = self.fc2(F.relu(self.trunk(audio)))
        return logits


@register("digits-both", ((1, 8, 8), (1, 32, 32)), "both trunks fused by concatenation (av-digits)")
class DigitsBoth(nn.Module):
    """Images [B, 1, 8, 8] and spectrograms [B, 1, 32, 32] to logits [B, C]."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.image_trunk = _ImageTrunk(width)
        self.audio_trunk = _AudioTrunk(width)
        self.concat = nn.Identity()
        self.fc1 = nn.Linear(8 * width, 4 * width)
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        joined = self.concat(torch.cat([F.relu(self.image_trunk(image)), F.relu(self.audio_trunk(audio))], dim=1))
        logits: Tensor = self.fc2(F.relu(self.fc1(joined)))
        return logits
