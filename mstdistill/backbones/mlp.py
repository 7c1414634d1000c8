"""MLP-Vb, MLP-Tb and MLP-I, the networks of CrisisMMD's image and text features (paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import register


class Classifier(nn.Module):
    """fc1 -> ReLU -> fc2 -> ReLU -> fc3 on the joined features of its branches.

    Args:
        features: width of the joined features.
        hidden: widths of fc1 and fc2.
        branches: submodules by name, in the order of the state dict; they come before the Linears.
    """

    def __init__(self, features: int, hidden: tuple[int, int], num_classes: int, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.fc1 = nn.Linear(features, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], num_classes)

    def classify(self, *features: Tensor) -> Tensor:
        """Features [B, d1], [B, d2], ... to logits [B, C]."""
        joined = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(joined)))))
        return logits


class FeatureNet(nn.Module):
    """[B, features] to [B, 512]: an MLP without its classifier."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 1024)
        self.fc2 = nn.Linear(1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x))))


@register("MLP-Vb", ((2048,),), "MLP for image features (paper, CrisisMMD)")
class ImageMLP(Classifier):
    """Image features [B, 2048] to logits [B, C]."""

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(2048, (1024, 512), num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(image)


@register("MLP-Tb", ((768,),), "MLP for text features (paper, CrisisMMD)")
class TextMLP(Classifier):
    """Text features [B, 768] to logits [B, C]."""

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(768, (1024, 512), num_classes)

    def forward(self, text: Tensor) -> Tensor:
        return self.classify(text)


@register("MLP-I", ((2048,), (768,)), "image and text MLPs fused by concatenation (paper, CrisisMMD)")
class ImageTextMLP(Classifier):
    """Image features [B, 2048] and text features [B, 768] to logits [B, C]."""

    VisualNet: FeatureNet
    TextualNet: FeatureNet

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(1024, (512, 256), num_classes, VisualNet=FeatureNet(2048), TextualNet=FeatureNet(768))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.classify(self.VisualNet(image), self.TextualNet(text))
