"""Images: reading them as 8 bits of grey or RGB, and resizing."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, first_line
from .content import called, content_of

# Modes that hold transparency; "La" and "RGBa" are those with the alpha multiplied in.
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
# Formats whose greys of 16 bits Pillow opens in a mode of 32 (PNG: before Pillow 11).
_SIXTEEN_BITS = ("PNG", "PPM")


def read_rgb(path: Path) -> Any:
    """A PIL image in RGB; see `decode_image`.

    Raises:
        DataError: missing, truncated or no image.
    """
    found = _eight_bits(path, str(path))
    return found if found.mode == "RGB" else found.convert("RGB")


def decode_image(value: Any, where: str) -> Any:
    """A picture from bytes, a path, an array or a picture, as PIL "L" or "RGB" of 8 bits, upright as its EXIF says.

    Grey and black-and-white stay grey ("L"), all else becomes RGB. Transparency is laid on white. Of several frames or
    pages the first is taken.

    Greys of 16 bits and arrays [H, W], [H, W, 1 to 4] or [1, 3 or 4, H, W] (channels last where both fit) are scaled
    by the range of their type: 65535 for uint16, 1 for bool. Where the type doesn't tell (floats, wider or signed
    integers), the range is the smallest of [0, 1] (floats), [0, 255] and [0, 65535] that holds the picture's values.

    Raises:
        DataError: missing, truncated, no picture, more pixels than Pillow takes for safe, NaN or Inf, or values outside
            of these ranges; the message names it.
    """
    from PIL import Image

    if isinstance(value, np.ndarray):
        return _eight_bits(_from_array(value, where), where)
    if isinstance(value, Image.Image):
        return _eight_bits(value, where)
    return _eight_bits(io.BytesIO(content_of(value, where)), called(value, where))


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


def pixels(image: Any) -> np.ndarray:
    """A picture as [channels, height, width] float32 in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255.0
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _eight_bits(source: Any, name: str) -> Any:
    """A picture, or the file of one, as "L" or "RGB"."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not isinstance(source, Image.Image):
                with Image.open(source) as image:
                    return _flat(image, name)
            return _flat(source, name)
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels ({type(error).__name__}, which may be an "
                        "attack); make it smaller, or leave it out") from None  # fmt: skip
    except Exception as error:  # decoders raise what they like
        # Pillow's own words name a place in memory, which differs from run to run
        unknown = isinstance(error, UnidentifiedImageError)
        line = "of no format that Pillow knows" if unknown else first_line(error, 120)
        raise DataError(f"{name}: not a readable image ({line}); fetch it again") from None


def _flat(image: Any, name: str) -> Any:
    from PIL import Image

    image.load()
    if 0 in image.size:
        raise DataError(f"{name}: has no pixels, {image.width} x {image.height}; leave it out")
    known = image.format
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = _scaled(np.asarray(image), name, 65535 if image.mode == "I" and known in _SIXTEEN_BITS else None)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey = np.where(np.asarray(image) == clear, np.uint8(255), grey)
        return Image.fromarray(grey)
    grey_kept = image.mode in ("1", "L")
    if image.mode in _TRANSPARENT or "transparency" in image.info or _clear_palette(image):
        image = image.convert("LA") if image.mode == "La" else image
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    wanted = "L" if grey_kept else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _clear_palette(image: Any) -> bool:
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _upright(image: Any) -> Any:
    from PIL import ExifTags, ImageOps

    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a damaged EXIF block; the pixels are whole
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _from_array(values: np.ndarray, name: str) -> Any:
    from PIL import Image

    shape = values.shape
    if values.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] > 4) or 0 in shape:
        raise DataError(f"{name}: an array {list(shape)} is no picture; give [H, W], [H, W, 3] or [3, H, W]")
    return Image.fromarray(np.ascontiguousarray(_scaled(values, name)))


def _scaled(values: np.ndarray, name: str, top: int | None = None) -> np.ndarray:
    """Values as uint8 in [0, 255], by `top` or the range that `decode_image` states."""
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind not in "biuf":
        raise DataError(f"{name}: an array of {values.dtype} is no picture; give uint8, uint16 or floats in [0, 1]")
    if kind == "b" or (kind == "u" and values.dtype.itemsize == 2):
        top = 1 if kind == "b" else 65535
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}: holds NaN or Inf; mend these pixels, or leave it out")
    if top is None:
        top = 1 if kind == "f" and high <= 1 else 255 if high <= 255 else 65535
    if low < 0 or high > top:
        raise DataError(f"{name}: holds values from {low:.6g} to {high:.6g}, whose range isn't known; scale them to "
                        "[0, 1], [0, 255] or [0, 65535], or keep them as a column of numbers")  # fmt: skip
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
