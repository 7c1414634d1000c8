"""NumPy files of the paper's authors: where they are, memory-mapped, their shapes and labels checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ....errors import DataError, first_line

ORDER = "released"


def folder_below(root: Path, names: Sequence[str]) -> Path | None:
    """The folder that holds any of these files (paths within it): `root` or one below it; None: there is none.

    Raises:
        DataError: there are several.
    """
    found = {path.parents[name.count("/")] for name in names for path in root.rglob(name)}
    if len(found) > 1:
        one, other = sorted(found)[:2]
        raise DataError(f"{root}: {one} and {other} both hold preprocessed arrays; name one of them")
    return found.pop() if found else None


def mapped(path: Path) -> np.ndarray:
    """An array file's values, on disk until they are asked for; opened once a process, and again where it has changed.

    Raises:
        DataError: missing, no NumPy file, truncated, or of Python objects, which only a pickle could hold.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; the authors' arrays belong together")
    facts = path.stat()
    return _mapped(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)
def _mapped(path: Path, size: int, changed: int) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers fail in kinds of their own
        raise DataError(f"{path}: no NumPy array that can be read ({first_line(error)}); fetch it again") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise DataError(
            f"{path}: holds {getattr(values, 'dtype', 'several arrays')}, where an array of numbers belongs"
        )
    return values


def rows_of(path: Path, *shapes: tuple[int, ...]) -> int:
    """How many rows an array file has.

    Args:
        shapes: of a row, any of which will do.

    Raises:
        DataError: a row has another shape.
    """
    found = mapped(path).shape
    if not found or found[1:] not in shapes:
        wanted = " or ".join("[" + ", ".join(["N", *map(str, shape)]) + "]" for shape in shapes)
        raise DataError(f"{path}: holds an array {list(found)}, where {wanted} belongs")
    return found[0]


def labels_of(path: Path, rows: int, beside: Path, classes: int) -> list[int]:
    """Class numbers, one a row.

    Args:
        rows: how many there should be, as `beside` has them.

    Raises:
        DataError: another number of them, or what is no class.
    """
    if rows_of(path, ()) != rows:
        raise DataError(f"{path}: {rows_of(path, ())} labels, where {beside.name} has {rows} rows: files of two sets")
    return classes_in(np.asarray(mapped(path)), path, classes)


def classes_in(values: np.ndarray, path: Path, classes: int) -> list[int]:
    """Labels [N] of a file as class numbers.

    Raises:
        DataError: one of them is no class.
    """
    wrong = np.flatnonzero(~np.isin(values, np.arange(classes)))
    if len(wrong):
        raise DataError(
            f"{path}: row {wrong[0]} has the label {values[wrong[0]]}, where classes are 0 to {classes - 1}"
        )
    return [int(value) for value in values]


def same_rows(paths: Sequence[Path], rows: Sequence[int]) -> int:
    """The number of rows that files have in common.

    Raises:
        DataError: they differ.
    """
    for path, count in zip(paths, rows, strict=True):
        if count != rows[0]:
            raise DataError(f"{path}: {count} rows, where {paths[0].name} has {rows[0]}: files of two sets")
    return rows[0]
