"""A drawn or photographed sign as small grey pictures hold it: its ink alone, light on dark, centred."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import DataError
from .picture import decode_image

# What counts as ink, as a share of the darkest stroke, and how much lighter than that paper may be.
_INK, _FAINTEST = 0.1, 0.08


def ink(picture: Any, size: int, high: int) -> np.ndarray:
    """The ink of a picture as [size, size] float32 in [0, 1], cut to the strokes, `high` pixels at its longer side, its
    centre of mass in the middle as far as that fits. Whether strokes are darker or lighter than the paper is told by
    the picture's border.

    Raises:
        DataError: nothing is drawn, or it is no picture.
    """
    from PIL import Image

    grey = np.asarray(decode_image(picture, "this picture").convert("L"), dtype=np.float32) / 255.0
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    strokes = np.abs(grey - np.median(border))
    if strokes.max() < _FAINTEST:
        raise DataError("nothing is drawn; draw something, or drop a picture")
    strokes /= strokes.max()
    rows, columns = (np.flatnonzero((strokes > _INK).any(axis=axis)) for axis in (1, 0))
    cut = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = high / max(cut.shape)
    height, width = (max(1, round(side * scale)) for side in cut.shape)
    small = np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.BOX))
    found = np.zeros((size, size), dtype=np.float32)
    top, left = _start(small.sum(axis=1), size), _start(small.sum(axis=0), size)
    found[top : top + height, left : left + width] = small
    return found / max(float(found.max()), 1e-6)


def _start(mass: np.ndarray, size: int) -> int:
    """Where a line of masses begins so that their centre is in the middle of `size`."""
    centre = float((mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum())
    return int(np.clip(round(size / 2 - centre), 0, size - len(mass)))
