"""Images: reading them as RGB, resizing, and the crop to a face."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, first_line
from .content import content_of


def read_rgb(path: Path) -> Any:
    """A PIL image in RGB; palettes, grey and transparency (on white) are converted.

    Raises:
        DataError: missing, truncated or no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            turned: Any = ImageOps.exif_transpose(image)
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                turned = turned.convert("RGBA")
                white = Image.new("RGBA", turned.size, "white")
                turned = Image.alpha_composite(white, turned)
            return turned.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable image ({line}); fetch it again") from None


def resize(image: np.ndarray, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """An image [H, W] or [H, W, 3] at another (height, width), bilinear with antialiasing, or nearest for labels."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), how))


def normalised(frames: np.ndarray) -> np.ndarray:
    """Frames [..., H, W, 3] uint8 to [..., 3, H, W] float32 with ImageNet's mean and deviation taken out."""
    mean, spread = np.array([0.485, 0.456, 0.406], "f"), np.array([0.229, 0.224, 0.225], "f")
    scaled: np.ndarray = (frames.astype(np.float32) / np.float32(255.0) - mean) / spread
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def decode_image(value: Any, where: str) -> Any:
    """A picture from bytes, a path, an array or a picture; greyscale stays so, all else becomes RGB."""
    from PIL import Image

    try:
        if isinstance(value, np.ndarray):
            value = Image.fromarray(value)
        elif not isinstance(value, Image.Image):
            value = Image.open(io.BytesIO(content_of(value, where)))
            value.load()
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise DataError(f"{where} is no readable picture ({first_line(error)})") from None
    return value if value.mode == "L" else value.convert("L" if value.mode in ("1", "I;16", "I") else "RGB")


def pixels(image: Any) -> np.ndarray:
    """A picture as [channels, height, width] float32 in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255.0
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
