"""Changes of pictures [B, ..., H, W], each instance by its own numbers, without a loop over the instances.

torchvision's functions make one change of a whole batch; these make those changes, instance by instance the same (the
tests compare them), by one gather or one mask a batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws

_TURNS, _FORMS = 4096, 256
# torchvision's RandomErasing: the share of the picture, and height over width
_LEAST, _MOST, _NARROW, _WIDE = 0.02, 0.33, 0.3, 3.3


def crop(x: Tensor, pixels: float, draws: Draws) -> Tensor:
    """A place of the old size in the picture with so many zeros on each side."""
    by = int(pixels)
    down, right = draws.below(2 * by + 1, 2 * by + 1).sub(by).unbind(1)
    return moved(moved(x, down, -2), right, -1)


def moved(x: Tensor, by: Tensor, axis: int) -> Tensor:
    """x [B, ...] read `by` [B] places further along an axis (from the end, -1 or -2); zeros come in."""
    size = x.shape[axis]
    at = torch.arange(size, device=x.device) + by.unsqueeze(1)
    shape = [len(x), *(1,) * (x.dim() - 1)]
    shape[axis] = size
    inside = ((at >= 0) & (at < size)).view(shape)
    found = x.gather(axis, at.clamp_(0, size - 1).view(shape).expand(x.shape))
    return torch.where(inside, found, 0)


def flip(x: Tensor, chance: float, draws: Draws) -> Tensor:
    """Mirrored left to right, by a chance."""
    return torch.where(_column(draws.uniform(1)[:, 0] < chance, x), x.flip(-1), x)


def turn(x: Tensor, degrees: float, draws: Draws) -> Tensor:
    """Turned around the middle by an angle of at most so many degrees; bilinear, zeros come in."""
    maps = x.flatten(1, -3) if x.dim() > 3 else x.unsqueeze(1)
    height, width = maps.shape[-2:]
    # no cosine of its own for each batch: those of a batch's end may differ in their last bit
    angle = torch.linspace(-degrees, degrees, _TURNS, dtype=torch.float64) * (math.pi / 180)
    table = torch.stack([angle.cos(), angle.sin()], dim=1).to(maps.dtype).to(x.device)
    cos, sin = table[draws.below(_TURNS)[:, 0]].unbind(1)
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    down = (torch.arange(height, device=x.device, dtype=maps.dtype) - (height - 1) / 2).view(1, -1, 1)
    right = (torch.arange(width, device=x.device, dtype=maps.dtype) - (width - 1) / 2).view(1, 1, -1)
    across, along = right * cos - down * sin, down * cos + right * sin
    grid = torch.stack([across / (width / 2), along / (height / 2)], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).view(x.shape)


def erase(x: Tensor, chance: float, draws: Draws) -> Tensor:
    """A rectangle becomes 0, by a chance."""
    height, width = x.shape[-2:]
    hits, share = draws.of("share").uniform(2).unbind(1)
    ratios = torch.linspace(math.log(_NARROW), math.log(_WIDE), _FORMS, dtype=torch.float64).exp().float()
    form = ratios.to(x.device)[draws.of("form").below(_FORMS)[:, 0]]
    area = (share * (_MOST - _LEAST) + _LEAST) * (height * width)
    tall = (area * form).sqrt().round().long().clamp(1, height)
    wide = (area / form).sqrt().round().long().clamp(1, width)
    top, left = draws.of("place").below(height - tall + 1, width - wide + 1).unbind(1)
    rows = within(top, tall, height).unsqueeze(2) & (hits < chance).view(-1, 1, 1)
    hole = rows & within(left, wide, width).unsqueeze(1)
    return x.masked_fill(hole.view(len(x), *(1,) * (x.dim() - 3), height, width), 0)


def within(start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size] whether a place is among the `length` [B] ones from `start` [B] on."""
    at = torch.arange(size, device=start.device)
    return (at >= start.unsqueeze(1)) & (at < (start + length).unsqueeze(1))


def _column(x: Tensor, like: Tensor) -> Tensor:
    """x [B] against an instance's numbers."""
    return x.view(-1, *(1,) * (like.dim() - 1))
