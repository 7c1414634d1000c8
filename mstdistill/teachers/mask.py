"""Mask modules: the plug-ins that rebuild a teacher's feature so that the student understands it.

Parameter names are those of the method's authors, so that their checkpoints load. The attention runs in the collapsed
form of `mstdistill.kernels.mask`, in float32 (or the parameters' dtype) also under autocast: a mask is small and its
scores are sensitive to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import MaskWeights, apply_mask, mask_values, masked_reconstruction


class MaskNet(nn.Module):
    """What all mask modules have in common.

    Attributes:
        noted: where forward passes leave their masks [B, d]; None: nobody wants them.
    """

    noted: list[Tensor] | None = None

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        if hidden < 1 or hidden % num_heads:
            raise ConfigError(f"mask: hidden width {hidden} must be a positive multiple of its {num_heads} heads")
        self.width, self.hidden, self.num_heads = width, hidden, num_heads
        self.embed = nn.Linear(width, width * hidden)
        self.mha = nn.MultiheadAttention(hidden, num_heads, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def values(self, vector: Tensor) -> Tensor:
        """[B, d] vector to its mask [B, d] in (0, 1)."""
        with torch.autocast(vector.device.type, enabled=False):
            return mask_values(vector, MaskWeights.of(self.embed, self.mha, self.fc))

    def vector(self, feature: Tensor) -> Tensor:
        """What a feature's mask is computed from, [B, d]."""
        raise NotImplementedError("a mask module says how its feature becomes a vector")

    def mask(self, feature: Tensor) -> Tensor:
        """The mask [B, d] of a feature."""
        return self.values(self.vector(feature))

    def forward(self, feature: Tensor) -> Tensor:
        """The reconstructed feature, of the feature's shape and dtype."""
        # vectors in disguise and volumes are masked like the vectors and maps that they are
        shape = feature.shape
        plain = feature.flatten(1) if shape[2:] == (1, 1) else feature.flatten(2, 3) if feature.dim() == 5 else feature
        vector = self.vector(feature)
        with torch.autocast(feature.device.type, enabled=False):
            if self.noted is None:
                masked = masked_reconstruction(plain, MaskWeights.of(self.embed, self.mha, self.fc), vector)
            else:  # in two steps, the mask in between
                self.noted.append(self.values(vector))
                masked = apply_mask(plain, self.noted[-1])
        return masked.view(shape) if masked.shape != shape else masked


class MaskNet1d(MaskNet):
    """Mask for vectors [B, d], and for maps [B, d, 1, 1] that are vectors in disguise (paper, mask module)."""

    def vector(self, feature: Tensor) -> Tensor:
        return feature.flatten(1)


class _SpatialReduce(nn.Module):
    """[B, C, H, W] -> [B, C]: depthwise stride 2, pointwise, batch norm, ReLU, mean over the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, feature: Tensor) -> Tensor:
        reduced: Tensor = self.downsample(feature).mean(dim=(2, 3))
        return reduced


class MaskNet2d(MaskNet):
    """Mask per channel for maps [B, C, H, W] (paper, mask module); volumes are read as [B, C, T*H, W]."""

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__(width, hidden, num_heads)
        self.spatial_reduce = _SpatialReduce(width)

    def vector(self, feature: Tensor) -> Tensor:
        if feature.dim() == 5:
            feature = feature.flatten(2, 3)
        with torch.autocast(feature.device.type, enabled=False):
            reduced: Tensor = self.spatial_reduce(feature.to(self.fc.weight.dtype))
        return reduced


class MaskNetTokens(MaskNet):
    """Mask per feature for token sequences [B, S, d], as transformers emit: the tokens' mean takes the 1-d form and the
    mask is broadcast over the sequence. An extension; the paper has no such features."""

    def vector(self, feature: Tensor) -> Tensor:
        return feature.mean(dim=1)


@dataclass(frozen=True)
class MaskPlan:
    """Which mask a tapped feature gets, and what it costs.

    Attributes:
        tap: name of the submodule.
        shape: the feature's shape without the batch.
        kind: "1d", "2d" or "tokens".
        width: number of features that are masked (d).
        hidden: width of the mask's attention (h).
        parameters: how many parameters the mask has.
        calls: how often the network runs the submodule in a forward; the mask acts each time.
    """

    tap: str
    shape: tuple[int, ...]
    kind: str
    width: int
    hidden: int
    num_heads: int
    parameters: int
    calls: int = 1

    def build(self) -> nn.Module:
        """The mask module, newly initialised from torch's global generator."""
        form = {"1d": MaskNet1d, "2d": MaskNet2d, "tokens": MaskNetTokens}[self.kind]
        return form(self.width, self.hidden, self.num_heads)


def count_parameters(width: int, hidden: int, kind: str) -> int:
    """Parameters of a mask module: d*d*h for the embedding, the rest is small."""
    attention = 4 * hidden * hidden + 4 * hidden + hidden + 1
    reduce = 9 * width + width * width + 2 * width if kind == "2d" else 0
    return width * width * hidden + width * hidden + attention + reduce


def plan_mask(
    tap: str,
    shape: tuple[int, ...],
    num_heads: int = 3,
    hidden_dim_factor: int = 2,
    hidden: int | None = None,
    max_parameters: int | None = None,
) -> MaskPlan:
    """Choose the mask for a feature of this shape (batch left out).

    hidden = d // (hidden_dim_factor * heads) * heads unless given (method, "the networks"); never under one per head;
    where `max_parameters` is set, the largest multiple of the heads that stays within it.

    Raises:
        ConfigError: a shape that no mask module fits, or a budget too small for the smallest mask.
    """
    if len(shape) == 1 or (len(shape) == 3 and shape[1:] == (1, 1)):
        kind, width = "1d", shape[0]
    elif len(shape) in (3, 4):
        kind, width = "2d", shape[0]
    elif len(shape) == 2:
        kind, width = "tokens", shape[1]
    else:
        raise ConfigError(f"tap {tap!r}: no mask module fits a feature of shape {list(shape)}; pick another tap")
    chosen = hidden or max(width // (hidden_dim_factor * num_heads), 1) * num_heads
    if max_parameters is not None:
        while chosen > num_heads and count_parameters(width, chosen, kind) > max_parameters:
            chosen -= num_heads
        if count_parameters(width, chosen, kind) > max_parameters:
            smallest = count_parameters(width, chosen, kind)
            raise ConfigError(
                f"tap {tap!r}: even the smallest mask of a feature of width {width} has {smallest:,} parameters; "
                f"raise mask.max_parameters (now {max_parameters:,}) or pick a narrower tap"
            )
    return MaskPlan(tap, tuple(shape), kind, width, chosen, num_heads, count_parameters(width, chosen, kind))
