"""LeNet5, the image network of AV-MNIST (paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import register


class LeNetFeatures(nn.Module):
    """[B, 1, 28, 28] images to [B, 84] features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.flatten_identity = nn.Identity()
        self.fc1 = nn.Linear(120, 84)

    def features(self, image: Tensor) -> Tensor:
        """The last hidden layer, after its ReLU."""
        x = F.avg_pool2d(F.relu(self.conv1(image)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = self.flatten_identity(F.relu(self.conv3(x)).flatten(1))
        return F.relu(self.fc1(x))

    def forward(self, image: Tensor) -> Tensor:
        return self.features(image)


@register("LeNet5", ((1, 28, 28),), "LeNet for 28x28 images (paper, AV-MNIST)")
class LeNet5(LeNetFeatures):
    """[B, 1, 28, 28] images to logits [B, C]."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc2 = nn.Linear(84, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.features(image))
        return logits
