"""Labels of several classes at once: lists of classes, lists of 0s and 1s, or a column of 0s and 1s a class.

All become [N, C] numbers: 1 where an instance has a class, 0 where it hasn't, -1 where that isn't known. A row without
a list is not known at all; an empty list is an instance that has none of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from ..source import UNLABELLED
from .labels import MOST_CLASSES, Classes, Column, Wrong, absent, named, scalar, shown


def resolve_lists(columns: Mapping[str, Column], what: str) -> Classes:
    """A column of lists: of 0s and 1s where all have one length and nothing else, else of classes.

    Args:
        columns: by split, the training split first.
        what: the column as a message calls it.

    Raises:
        DataError: no list, or what is no class; it names a row.
    """
    rows = {split: [_list(value, f"{what}: {split}/{i}") for i, value in enumerate(column.values)]
            for split, column in columns.items()}  # fmt: skip
    declared = list(dict.fromkeys(name for column in columns.values() for name in column.names))
    lengths = {len(row) for found in rows.values() for row in found if row is not None}
    alike = len(lengths) == 1 and min(lengths) > 1 and not declared
    if alike and all(_flag(x) is not None for found in rows.values() for row in found for x in row or ()):
        (width,) = lengths
        nothing = [UNLABELLED] * width
        numbers = {split: np.array([nothing if row is None else [_flag(x) for x in row] for row in found],
                                   dtype=np.int64).reshape(len(found), width)
                   for split, found in rows.items()}  # fmt: skip
        return Classes(tuple(map(str, range(width))), numbers, ("labels: lists of 0s and 1s, a class each",))
    return _of_classes(rows, columns, declared, what)


def _of_classes(
    rows: Mapping[str, list[list[Any] | None]], columns: Mapping[str, Column], declared: list[str], what: str
) -> Classes:  # fmt: skip
    tokens: dict[str, list[list[Any] | None]] = {}
    families: dict[str, str] = {}
    for split, found in rows.items():
        tokens[split] = []
        for i, row in enumerate(found):
            where = f"{what}: {split}/{i}"
            pairs = [_class(x, columns[split].names, where) for x in row or ()]
            for family, _ in pairs:
                families.setdefault(family or "", where)
            tokens[split].append(None if row is None else [token for family, token in pairs if family])
    families.pop("", None)
    if len(families) > 1:
        raise DataError(f"{what} holds {' and '.join(sorted(families))}: make its classes of one kind")
    seen = {token for found in tokens.values() for row in found for token in row or ()}
    names = [*declared, *sorted(seen - set(declared))]
    if len(names) < 2 or len(names) > MOST_CLASSES:
        raise DataError(f"{what} holds {len(names):,} different classes; at least two are wanted")
    place = {name: i for i, name in enumerate(names)}
    numbers = {}
    for split, found in tokens.items():
        numbers[split] = np.zeros((len(found), len(names)), dtype=np.int64)
        for i, row in enumerate(found):
            if row is None:
                numbers[split][i] = UNLABELLED
            else:
                numbers[split][i, [place[token] for token in row]] = 1
    return Classes(tuple(map(str, names)), numbers, ("labels: lists of classes, several an instance",))


def resolve_columns(columns: Mapping[str, Mapping[str, Sequence[Any]]], location: str) -> Classes:
    """A column of 0s and 1s (or of truth values) a class.

    Args:
        columns: by split, then by class.

    Raises:
        DataError: something else in one of them; it names the row.
    """
    names = list(next(iter(columns.values())))
    numbers = {}
    for split, given in columns.items():
        found = np.empty((len(given[names[0]]), len(names)), dtype=np.int64)
        for c, name in enumerate(names):
            for i, value in enumerate(given[name]):
                flag = _flag(value)
                if flag is None:
                    raise DataError(f"{location}: column {name!r}: {split}/{i} holds {shown(value)}: 0, 1 or nothing "
                                    "is wanted (data.label_columns)")  # fmt: skip
                found[i, c] = flag
        numbers[split] = found
    return Classes(tuple(names), numbers, ())


def _list(value: Any, where: str) -> list[Any] | None:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return list(value)
    if absent(value):
        return None
    raise DataError(f"{where} holds {shown(value)}: data.multilabel wants lists of classes, or of 0s and 1s")


def _flag(value: Any) -> int | None:
    """0, 1, or -1 for what isn't known; None: it is none of them."""
    if isinstance(value, np.generic):
        value = value.item()
    if absent(value):
        return UNLABELLED
    if isinstance(value, (bool, int, float)) and value in (0, 1, UNLABELLED):
        return int(value)
    return None


def _class(value: Any, names: tuple[str, ...], where: str) -> tuple[str | None, Any]:
    """Family and token of a class in a list; see `labels.scalar`."""
    try:
        family, token = scalar(value)
        return named(token, names) if names and family == "numbers" else (family, token)
    except Wrong as error:
        raise DataError(f"{where} holds {shown(value)}: {error}") from None
