"""What networks see of an instance, as one small picture: its picture, and its sound as a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_HIGH, _GAP = 128, 8


def tile(parts: Sequence[tuple[str, np.ndarray]]) -> Any:
    """Modalities (kind, [1 or 3, H, W]) side by side, PIL, grey or RGB; spectrograms with low pitches at the bottom.
    A constant part is black."""
    from PIL import Image

    columns = []
    for kind, array in parts:
        low, high = float(array.min()), float(array.max())
        shown = np.moveaxis((array - low) / (high - low or 1.0) * 255, 0, -1).astype(np.uint8)
        shown = np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown
        shown = shown[::-1] if kind == "audio" else shown
        width = max(1, round(_HIGH * shown.shape[1] / shown.shape[0]))
        columns.append(np.asarray(Image.fromarray(shown).resize((width, _HIGH), Image.Resampling.NEAREST)))
    gap = np.full((_HIGH, _GAP, 3), 255, np.uint8)
    whole = [part for column in columns for part in (column, gap)][:-1]
    return Image.fromarray(np.concatenate(whole, axis=1))
