"""CrisisMMD as the paper's authors encoded it: `CMMD_data.pth`, a torch file of a tuple of three NumPy arrays.

Image features [N, 2048], text features [N, 768] and labels [N], not scaled; rows stand as the file has them.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....errors import DataError, first_line
from ...prepared.plan import Column, Item, Plan, Row
from ...task import Task
from ..files import sha256
from .arrays import ORDER, classes_in

NAME = "CMMD_data.pth"
# what NumPy's arrays of numbers are rebuilt by, under the names that NumPy 1 and 2 give it
_REBUILD = np.empty(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    (_REBUILD, "numpy.core.multiarray._reconstruct"), (_REBUILD, "numpy._core.multiarray._reconstruct"),
    np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]  # fmt: skip


def file_below(root: Path) -> Path | None:
    """The authors' file: `root` itself, or below it; None: there is none.

    Raises:
        DataError: there are several.
    """
    if root.is_file():
        return root
    found = sorted(root.rglob(NAME))
    if len(found) > 1:
        raise DataError(f"{root}: {found[0]} and {found[1]} are below it; name the file that you mean")
    return found[0] if found else None


def plan_of(path: Path, task: Task) -> Plan:
    """How the authors' file becomes prepared data, rows in their order.

    Raises:
        DataError: something else in it than three arrays, or shapes, values or labels that don't fit.
    """
    image, text, label = _arrays(path)
    shapes = {name: tuple(size or 0 for size in shape) for name, shape in task.modalities.items()}
    for what, values, shape in (
        ("image", image, shapes["image"]),
        ("text", text, shapes["text"]),
        ("label", label, ()),
    ):
        _check(path, what, values, (len(image) if image.ndim else 0, *shape))
    classes = classes_in(label, path, task.num_classes)
    return Plan(
        task=task.name,
        version=task.version,
        columns={name: Column(shape, "float32") for name, shape in shapes.items()},
        items=[Item(f"row {i}", (image[i], text[i]), classes[i]) for i in range(len(image))],
        read=read_row,
        settings={"released": True},
        order=ORDER,
        card={
            "title": task.title,
            "classes": list(task.class_names),
            "released": "the authors' features",
            "sources": {
                "publisher": "CrisisMMD v2.0 (CC BY-NC-SA 4.0), encoded by the paper's authors",
                "sha256": {path.name: sha256(path)},
            },
        },
    )


def read_row(source: tuple[np.ndarray, np.ndarray]) -> Row:
    """A row's features as they are; each travels with its item, since the file can't be read in pieces."""
    return dict(zip(("image", "text"), source, strict=True))


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that isn't torch's: the error says it
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class) '?([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise DataError(
            f"{path}: no torch file, or one that holds something else{what} than arrays of numbers; nothing in it was "
            "run; fetch it again"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files fail in kinds of their own
        raise DataError(f"{path}: no torch file that can be read ({first_line(error)}); fetch it again") from None
    if not isinstance(found, tuple) or len(found) != 3:
        held = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, tuple | list | dict) else "")
        raise DataError(f"{path}: holds {held}, where a tuple of image features, text features and labels belongs")
    for value in found:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "uif":
            held = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise DataError(f"{path}: holds {held}, where three NumPy arrays of numbers belong")
    image, text, label = found
    return image, text, label


def _check(path: Path, what: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        wanted = ["N", *shape[1:]] if what == "image" else [*shape]
        raise DataError(f"{path}: {what}s are {list(values.shape)}, where [{', '.join(map(str, wanted))}] belong")
    # one row at a time: no second array of this size
    for row in range(len(values) if what != "label" else 0):
        if not np.isfinite(values[row]).all():
            raise DataError(f"{path}: row {row} of the {what}s has NaN or Inf; fetch it again")
