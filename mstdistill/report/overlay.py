"""Small pictures for pages: an input in grey, a heat map over it, as a data URI."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .charts import heat_colours
from .gradcam import enlarged

# Longer side in pixels, and colours: pictures of some kilobytes.
SIDE, COLOURS = 96, 48


def drawn(picture: Tensor, heat: Tensor | None = None) -> str:
    """A PNG as a data URI.

    Args:
        picture: [1 or 3, H, W], of any scale: its least value is black, its greatest white.
        heat: [h, w], not negative; shown relative to its greatest value. None: the picture alone, colours kept.
    """
    size = _canvas(picture)
    plain = _resized(picture.detach().float().cpu(), size)
    plain = (plain - plain.amin()) / (plain.amax() - plain.amin()).clamp(min=1e-12)
    pixels = plain.expand(3, -1, -1).permute(1, 2, 0).numpy()
    if heat is not None:
        weight = enlarged(heat.detach().float().cpu().unsqueeze(0), size)[0].numpy()
        grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
        opacity = 0.8 * np.sqrt(weight)[..., None]
        pixels = (1 - opacity) * (0.25 + 0.6 * grey) + opacity * heat_colours(weight)
    image = Image.fromarray((255 * pixels).round().astype(np.uint8)).quantize(COLOURS)
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _canvas(picture: Tensor) -> tuple[int, int]:
    """Height and width of about SIDE, of the picture's proportions."""
    height, width = picture.shape[1:]
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Few pixels stay squares, many are averaged."""
    mode = "area" if picture.shape[1] > size[0] else "nearest-exact"
    return torch.as_tensor(F.interpolate(picture.unsqueeze(0), size=size, mode=mode)[0])
