"""Raw columns of a data set to what networks and processors take: pictures, sounds, texts, arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import DataError
from .picture import decode_image
from .sound import decode_audio


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
    array = array_of(value, where)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {array.dtype} where numbers are wanted")
    array = array.astype(np.uint8) if array.dtype == bool else array
    if array.dtype.kind == "f":
        try:
            with np.errstate(over="raise"):
                array = array.astype(np.float32)
        except FloatingPointError:
            raise DataError(f"{where} holds numbers beyond float32's 3.4e38; scale them") from None
    return array if array.ndim else array[None]


def array_of(value: Any, where: str) -> np.ndarray:
    """Lists of numbers as an array that holds them; arrays and what is like them as they are.

    Raises:
        DataError: lists of different lengths, missing numbers, or whole numbers that no type of NumPy's holds.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise DataError(f"{where} holds lists of different lengths") from None
    if array.dtype == object:
        large = any(isinstance(one, int) for one in array.ravel()) and all(one is not None for one in array.ravel())
        what = "whole numbers of more than 64 bits" if large else "missing numbers or lists of different lengths"
        raise DataError(f"{where} holds {what}")
    floats = array.dtype.kind == "f" and isinstance(value, (list, tuple)) and array.size > 0
    # NumPy makes floats of whole numbers too large for int64 beside others
    if (
        floats
        and np.abs(array).max() >= 2**63
        and all(isinstance(one, int) for one in np.asarray(value, object).ravel())
    ):
        raise DataError(f"{where} holds whole numbers of more than 64 bits with a sign")
    return array
