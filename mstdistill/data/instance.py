"""The one place where a row becomes a validated instance, or one line: which row, what was expected, the mend.

Whatever enters a network has been here: raw rows one by one (`value`, `label`), rows of prepared arrays in batches
(`check_batch`), and rows that a publisher's files gave (`complaint`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, MstdistillError, first_line
from .decode.value import decode
from .source import Labels, Modality, Source


def read(source: Source, split: str, position: int, wanted: Sequence[str]) -> tuple[dict[str, Any], int | np.ndarray]:
    """A row's modalities, each as `value` gives it, and its label.

    Raises:
        DataError: the row can't be read, or something in it can't be used; the message names the row.
    """
    where = source.called(split, position)
    row = attempted(where, lambda: source.row(split, position))
    values = {name: value(source.modalities[name], row.values.get(name), f"{name} of {where}") for name in wanted}
    return values, label(source.labels, row.label, where)


def attempted(where: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; an error of anybody's code becomes one of ours that names the row.

    Raises:
        DataError: it failed.
    """
    try:
        return read()
    except MstdistillError:
        raise
    except Exception as error:  # decoders, storage and users' data sets each have kinds of their own
        raise DataError(f"{where} can't be read ({type(error).__name__}: {first_line(error)})") from None


def value(modality: Modality, raw: Any, where: str) -> Any:
    """A picture (PIL), samples [n] float32 with their rate, a text, or an array of finite numbers.

    Raises:
        DataError: missing, unreadable, of another shape, or not finite.
    """
    found = decoded(modality, raw, where)
    wrong = unfit(found, modality.shape) if modality.kind == "array" else ""
    if wrong:
        raise DataError(f"{where} {wrong}")
    return found


def decoded(modality: Modality, raw: Any, where: str) -> Any:
    """As `value`, before arrays are looked at.

    Raises:
        DataError: missing or unreadable.
    """
    if isinstance(raw, Exception):
        raise raw if isinstance(raw, DataError) else DataError(f"{where} can't be read ({first_line(raw)})")
    return attempted(where, lambda: decode(modality.kind, raw, where))


def unfit(array: np.ndarray, shape: Sequence[int | None] | None) -> str:
    """What is wrong with an array, in words; else nothing."""
    return "holds no numbers" if array.size == 0 else misfit(array, shape) or infinite(array)


def misfit(array: np.ndarray, shape: Sequence[int | None] | None) -> str:
    """What is wrong with an array's shape, in words; else nothing."""
    if shape is None or (
        array.ndim == len(shape) and all(want in (None, have) for have, want in zip(array.shape, shape, strict=True))
    ):
        return ""
    return f"has shape {list(array.shape)}, not {[size if size is not None else 'any' for size in shape]}"


def infinite(array: np.ndarray) -> str:
    """Whether numbers aren't finite, in words; else nothing."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return ""
    return "holds NaN or Inf"


def complaint(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: str) -> str:
    """What keeps a modality's values from being stored in this shape and type, in words; else nothing."""
    wrong = misfit(array, shape)
    if wrong:
        return f"{name} {wrong}"
    if array.dtype.kind not in "biuf":
        return f"{name} holds {array.dtype}, not numbers"
    wanted = np.dtype(dtype)
    if array.size == 0 or (array.dtype == wanted and wanted.kind != "f") or _fits_floats(array, wanted):
        return ""
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"NaN or Inf in {name}"
    if wanted.kind == "f":
        too_large = max(abs(low), abs(high)) > float(np.finfo(wanted).max)
        return f"values in {name} are too large for {dtype}; take --dtype float32" if too_large else ""
    info = np.iinfo(wanted)
    fits = info.min <= low and high <= info.max and (array.dtype.kind != "f" or bool((array == np.trunc(array)).all()))
    return "" if fits else f"values in {name}, {low:g} to {high:g}, can't be stored as {dtype} unchanged"


def _fits_floats(array: np.ndarray, wanted: np.dtype[Any]) -> bool:
    """Whether floats are finite and stay so in a type of floats: what nearly every row is, in two quick passes."""
    if array.dtype.kind != "f" or wanted.kind != "f":
        return False
    most = np.finfo(wanted).max
    return bool(array.min() >= -most and array.max() <= most)  # NaN is neither


def label(labels: Labels, raw: Any, where: str) -> int | np.ndarray:
    """A row's class, or its map [H, W] int64.

    Raises:
        DataError: no label, or one that is no class of these.
    """
    if raw is None or (np.ndim(raw) == 0 and not isinstance(raw, str) and int(raw) == -1 and labels.ignore != -1):
        raise DataError(f"{where} has no label")
    array = np.asarray(raw)
    if labels.kind == "several":
        _check_several(torch.from_numpy(array.astype(np.int64))[None], labels, lambda row: where)
        return array.astype(np.int64)
    if array.dtype.kind not in "iub":
        raise DataError(f"{where}: label {str(raw)[:40]!r} is no class: whole numbers are wanted")
    if labels.count is not None:
        wrong = (array < 0) | (array >= labels.count)
        if labels.ignore is not None:
            wrong &= array != labels.ignore
        if wrong.any():
            raise DataError(f"{where}: label {int(array[wrong].ravel()[0]) if array.ndim else int(array)} "
                            f"{out_of_range(labels.count)}")  # fmt: skip
    return array.astype(np.int64) if array.ndim else int(array)


def out_of_range(count: int) -> str:
    """What is said of a label that is none."""
    return f"is out of range: the task has {count} classes, 0 to {count - 1}"


def check_batch(
    inputs: Mapping[str, Tensor], label: Tensor, labels: Labels, called: Callable[[int], str]
) -> None:  # fmt: skip
    """The rules of an instance for a batch at once.

    Args:
        inputs: modality -> [B, ...].
        label: [B] or [B, H, W] int64.
        called: how a person finds the batch's row of a number.

    Raises:
        DataError: NaN or Inf in the data, labels out of range.
    """
    for modality, values in inputs.items():
        if values.is_floating_point() and not bool(torch.isfinite(values.sum())):
            finite = torch.isfinite(values.flatten(1)).all(dim=1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                raise DataError(
                    f"NaN or Inf in modality {modality!r} of {called(row)}; mend or drop it, then prepare the data "
                    "again"
                )
    if labels.kind == "several":
        _check_several(label, labels, called)
        return
    if label.dim() == 2:
        raise DataError(f"label of {called(0)} has shape {list(label.shape[1:])}; a class an instance is wanted, or "
                        "data.multilabel=true where it has several")  # fmt: skip
    if labels.count is None:
        return
    wrong = (label < 0) | (label >= labels.count)
    if labels.ignore is not None:
        wrong &= label != labels.ignore
    if bool(wrong.any()):
        row = int(wrong.flatten(1).any(dim=1).nonzero()[0] if wrong.dim() > 1 else wrong.nonzero()[0])
        raise DataError(f"label {int(label[wrong][0])} of {called(row)} {out_of_range(labels.count)}")


def _check_several(label: Tensor, labels: Labels, called: Callable[[int], str]) -> None:
    """The rules of labels of several classes at once [B, C].

    Raises:
        DataError: another number of classes than the task has, or something else than 0, 1 and -1.
    """
    if label.dim() != 2 or (labels.count is not None and label.shape[1] != labels.count):
        raise DataError(f"label of {called(0)} has shape {list(label.shape[1:])}; a multi-label task of "
                        f"{labels.count} classes wants [{labels.count}]")  # fmt: skip
    wrong = (label < -1) | (label > 1)
    if bool(wrong.any()):
        row = int(wrong.any(dim=1).nonzero()[0])
        raise DataError(f"label of {called(row)} holds {int(label[wrong][0])}: 0, 1 or -1 (not known) is wanted for "
                        "each class")  # fmt: skip
