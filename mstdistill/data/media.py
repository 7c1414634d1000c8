"""Raw columns of a data set to what networks and processors take: pictures, sounds, texts, arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, first_line
from .preprocess.audio import read_channels
from .preprocess.video import read_sound


def kind_of(feature: Any) -> str | None:
    """ "image", "audio", "text" or "array" for a column's feature in `datasets`; None: of no use to a network."""
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Audio):
        return "audio"
    if isinstance(feature, Mapping):
        return "audio" if {"array", "sampling_rate"} <= set(feature) else None
    if isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)):
        return "array"
    while hasattr(feature, "feature"):  # lists of lists
        feature = feature.feature
        if isinstance(feature, Mapping):
            return None
    if isinstance(feature, datasets.ClassLabel):
        return "array"
    if not isinstance(feature, datasets.Value):
        return None
    name = str(feature.dtype)
    if name in ("string", "large_string"):
        return "text"
    return "array" if name.startswith(("int", "uint", "float", "bool", "double")) else None


def decode(kind: str, value: Any, where: str) -> Any:
    """A raw value: a picture (PIL), samples [n] float32 with their rate, a text, or an array.

    Raises:
        DataError: missing, or it can't be decoded; the message names it.
    """
    if value is None:
        raise DataError(f"{where} is missing")
    if kind == "image":
        return decode_image(value, where)
    if kind == "audio":
        return decode_audio(value, where)
    if kind == "text":
        if not isinstance(value, str):
            raise DataError(f"{where} is no text but {type(value).__name__}")
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{where} holds lists of different lengths") from None
    if array.dtype == object:
        raise DataError(f"{where} holds missing numbers or lists of different lengths")
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
    return array if array.ndim else array[None]


def decode_image(value: Any, where: str) -> Any:
    """A picture from bytes, a path, an array or a picture; greyscale stays so, all else becomes RGB."""
    from PIL import Image

    try:
        if isinstance(value, np.ndarray):
            value = Image.fromarray(value)
        elif not isinstance(value, Image.Image):
            value = Image.open(io.BytesIO(_content(value, where)))
            value.load()
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise DataError(f"{where} is no readable picture ({first_line(error)})") from None
    return value if value.mode == "L" else value.convert("L" if value.mode in ("1", "I;16", "I") else "RGB")


def pixels(image: Any) -> np.ndarray:
    """A picture as [channels, height, width] float32 in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255.0
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def decode_audio(value: Any, where: str) -> tuple[np.ndarray, int]:
    """Samples [n] float32, the mean of the channels, and their rate."""
    if isinstance(value, Mapping) and value.get("array") is not None:
        samples, rate = np.asarray(value["array"], dtype=np.float32), int(value["sampling_rate"])
    else:
        content = _content(value, where)
        if content[:4] in (b"RIFF", b"RIFX", b"RF64"):
            samples, rate = read_channels(io.BytesIO(content), where)
        else:
            samples, rate = read_sound(io.BytesIO(content), where=where)
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if mono.size == 0:
        raise DataError(f"{where} holds no sound")
    return mono.astype(np.float32), rate


def _content(value: Any, where: str) -> bytes:
    """The bytes of a file that a row holds or names."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is no file but {type(value).__name__}")
    if value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path")
    if not path:
        raise DataError(f"{where} is empty")
    try:
        if "://" in str(path):
            import fsspec

            with fsspec.open(path, "rb") as file:
                return bytes(file.read())
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {path} can't be read ({error.strerror or first_line(error)})") from None
