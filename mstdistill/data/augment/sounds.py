"""Changes of sounds: samples [B, ..., T] or spectrograms [B, ..., F, T], and of arrays that lie as they do."""

from __future__ import annotations

from torch import Tensor

from .draws import Draws
from .pictures import moved, within


def mask_frequency(x: Tensor, bins: float, draws: Draws) -> Tensor:
    """A band of up to so many bins becomes 0 (SpecAugment; torchaudio's draws, made of other random numbers)."""
    return x.masked_fill(_stretch(x.shape[-2], int(bins), draws).view(len(x), *(1,) * (x.dim() - 3), -1, 1), 0)


def mask_time(x: Tensor, frames: float, draws: Draws) -> Tensor:
    """A stretch of up to so many frames becomes 0."""
    return x.masked_fill(_stretch(x.shape[-1], int(frames), draws).view(len(x), *(1,) * (x.dim() - 2), -1), 0)


def _stretch(size: int, most: int, draws: Draws) -> Tensor:
    length = draws.of("length").below(most + 1)[:, 0]
    return within(draws.of("start").below(size - length + 1)[:, 0], length, size)


def shift(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Moved in time by up to this share of the length; zeros come in."""
    most = round(share * x.shape[-1])
    return moved(x, draws.below(2 * most + 1)[:, 0] - most, -1)


def noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """With normal noise of this standard deviation."""
    return x + draws.normal(x[0].numel(), deviation, x.dtype).view(x.shape)
