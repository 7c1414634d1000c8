"""AudioBranchNet, VisualBranchNet and DSCNN-I, the networks of RAVDESS' faces and MFCC (paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .mlp import Classifier
from .registry import register


class AudioBranch(nn.Module):
    """[B, channels[0], L] to features [B, channels[3] * (L // 27)]: three convolutions over time."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels[0], channels[1], 3, padding=1)
        self.bn1 = nn.BatchNorm1d(channels[1])
        self.conv2 = nn.Conv1d(channels[1], channels[2], 3, padding=1)
        self.bn2 = nn.BatchNorm1d(channels[2])
        self.conv3 = nn.Conv1d(channels[2], channels[3], 3, padding=1)
        self.bn3 = nn.BatchNorm1d(channels[3])

    def forward(self, audio: Tensor) -> Tensor:
        x = audio
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(F.max_pool1d(norm(conv(x)), 3))  # max and ReLU commute exactly
        return x.flatten(1)


class VisualBranch(nn.Module):
    """Channels first: [B, channels[0], T, H, W] to features [B, n]; three convolutions over time and space.

    Args:
        pools: after how many of them time and space are halved.
    """

    def __init__(self, channels: tuple[int, int, int, int], pools: int = 3) -> None:
        super().__init__()
        self.pools = pools
        self.conv1 = nn.Conv3d(channels[0], channels[1], 3, padding=1)
        self.bn1 = nn.BatchNorm3d(channels[1])
        self.conv2 = nn.Conv3d(channels[1], channels[2], 3, padding=1)
        self.bn2 = nn.BatchNorm3d(channels[2])
        self.conv3 = nn.Conv3d(channels[2], channels[3], 3, padding=1)
        self.bn3 = nn.BatchNorm3d(channels[3])

    def forward(self, visual: Tensor) -> Tensor:
        x = visual
        layers = ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3))
        for number, (conv, norm) in enumerate(layers):
            x = norm(conv(x))
            x = F.relu(F.max_pool3d(x, 2) if number < self.pools else x)
        return x.flatten(1)


_AUDIO, _VISUAL, _HIDDEN = (15, 32, 128, 256), (3, 6, 12, 24), (320, 160)
_AUDIO_FEATURES, _VISUAL_FEATURES = 256 * 5, 24 * 1 * 28 * 28


@register("AudioBranchNet", ((15, 156),), "1-d convolutions for MFCC (paper, RAVDESS)")
class AudioBranchNet(Classifier):
    """MFCC [B, 15, 156] to logits [B, C]."""

    audio_branch: AudioBranch

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(_AUDIO_FEATURES, _HIDDEN, num_classes, audio_branch=AudioBranch(_AUDIO))

    def forward(self, audio: Tensor) -> Tensor:
        return self.classify(self.audio_branch(audio))


@register("VisualBranchNet", ((15, 3, 224, 224),), "3-d convolutions for video (paper, RAVDESS)")
class VisualBranchNet(Classifier):
    """Video [B, 15, 3, 224, 224], frames first as stored, to logits [B, C]."""

    visual_branch: VisualBranch

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(_VISUAL_FEATURES, _HIDDEN, num_classes, visual_branch=VisualBranch(_VISUAL))

    def forward(self, video: Tensor) -> Tensor:
        return self.classify(self.visual_branch(video.transpose(1, 2)))


@register("DSCNN-I", ((15, 3, 224, 224), (15, 156)), "video and MFCC branches fused by concatenation (paper, RAVDESS)")
class DSCNNI(Classifier):
    """Video [B, 15, 3, 224, 224], frames first as stored, and MFCC [B, 15, 156] to logits [B, C]."""

    audio_branch: AudioBranch
    visual_branch: VisualBranch

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__(_AUDIO_FEATURES + _VISUAL_FEATURES, _HIDDEN, num_classes,
                         audio_branch=AudioBranch(_AUDIO), visual_branch=VisualBranch(_VISUAL))  # fmt: skip

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        # the inputs come in the task's order, fc1 counts the audio features first
        return self.classify(self.audio_branch(audio), self.visual_branch(video.transpose(1, 2)))
