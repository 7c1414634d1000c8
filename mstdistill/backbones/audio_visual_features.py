"""AudioBranchNet-VGGS, VisualBranchNet-VGGS and DSCNN-VGGS-I, the networks of VGGSound's features (paper)."""

from __future__ import annotations

from torch import Tensor

from .audio_visual import AudioBranch, VisualBranch
from .mlp import Classifier
from .registry import register

_AUDIO, _VISUAL, _HIDDEN = (10, 16, 32, 64), (512, 256, 128, 64), (320, 160)
_AUDIO_FEATURES, _VISUAL_FEATURES = 64 * 4, 64 * 2 * 1 * 1
# a third pool would leave nothing of two frames of 1x1
_VISUAL_POOLS = 2


def _channels_first(visual: Tensor) -> Tensor:
    """[B, 10, 7, 7, 512] as stored to [B, 512, 10, 7, 7]."""
    return visual.permute(0, 4, 1, 2, 3)


@register("AudioBranchNet-VGGS", ((10, 128),), "1-d convolutions for audio features (paper, VGGSound)")
class AudioFeaturesNet(Classifier):
    """Audio features [B, 10, 128], one vector a second, to logits [B, C]."""

    audio_branch: AudioBranch

    def __init__(self, num_classes: int = 141) -> None:
        super().__init__(_AUDIO_FEATURES, _HIDDEN, num_classes, audio_branch=AudioBranch(_AUDIO))

    def forward(self, audio: Tensor) -> Tensor:
        return self.classify(self.audio_branch(audio))


@register("VisualBranchNet-VGGS", ((10, 7, 7, 512),), "3-d convolutions for visual features (paper, VGGSound)")
class VisualFeaturesNet(Classifier):
    """Visual features [B, 10, 7, 7, 512], channels last as stored, to logits [B, C]."""

    visual_branch: VisualBranch

    def __init__(self, num_classes: int = 141) -> None:
        branch = VisualBranch(_VISUAL, _VISUAL_POOLS)
        super().__init__(_VISUAL_FEATURES, _HIDDEN, num_classes, visual_branch=branch)

    def forward(self, visual: Tensor) -> Tensor:
        return self.classify(self.visual_branch(_channels_first(visual)))


@register("DSCNN-VGGS-I", ((10, 7, 7, 512), (10, 128)), "both branches fused by concatenation (paper, VGGSound)")
class DSCNNFeatures(Classifier):
    """Visual features [B, 10, 7, 7, 512], channels last as stored, and audio [B, 10, 128] to logits [B, C]."""

    audio_branch: AudioBranch
    visual_branch: VisualBranch

    def __init__(self, num_classes: int = 141) -> None:
        super().__init__(_AUDIO_FEATURES + _VISUAL_FEATURES, _HIDDEN, num_classes,
                         audio_branch=AudioBranch(_AUDIO),
                         visual_branch=VisualBranch(_VISUAL, _VISUAL_POOLS))  # fmt: skip

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        # the inputs come in the task's order, fc1 counts the audio features first
        return self.classify(self.audio_branch(audio), self.visual_branch(_channels_first(visual)))
