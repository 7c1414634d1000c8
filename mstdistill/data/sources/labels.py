"""A column of labels as class numbers: words, whole numbers, truth values, dates, `ClassLabel`s, one-hot lists.

Classes are matched by name over the splits, so that two files which number them differently mean the same. Whatever had
to be read in another way than it was written is said in a note; whatever can't be a class is one line that names a row.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from ...errors import DataError

# A column with more classes is no label: an id, a measurement.
MOST_CLASSES = 20_000
# Words that tables write where there is nothing, as pandas reads them.
ABSENT = frozenset(("", "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"))
_FAMILIES = {"words": "words", "numbers": "whole numbers", "flags": "truth values", "dates": "dates"}


@dataclass(frozen=True)
class Column:
    """A split's labels.

    Attributes:
        values: a row's each, as the data hold them.
        names: of a `ClassLabel` column's numbers; else none.
    """

    values: Sequence[Any]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """Labels resolved.

    Attributes:
        names: of the classes.
        numbers: split -> class of each row [N] int64, -1 where there is no label.
        notes: what was read in another way than it was written.
    """

    names: tuple[str, ...]
    numbers: dict[str, np.ndarray]
    notes: tuple[str, ...]


class Wrong(Exception):
    """A value that is no class; the caller knows where it stands."""


def resolve(columns: Mapping[str, Column], what: str) -> Classes:
    """Class names over all splits, and every row's class.

    Args:
        columns: by split, the training split first.
        what: the column as a message calls it: the data and the column's name.

    Raises:
        DataError: a value that is no class, kinds that differ, or no two classes; it names a row.
    """
    reading = _Reading(what)
    tokens = {split: reading.tokens(column, split) for split, column in columns.items()}
    names = reading.names(columns)
    number = {name: i for i, name in enumerate(names)} | {None: -1}
    found = {split: np.array([number[token] for token in values], dtype=np.int64) for split, values in tokens.items()}
    return Classes(tuple(map(str, names)), found, tuple(reading.notes()))


class _Reading:
    """What a column's values turn out to be while they are read."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.first: dict[str, str] = {}  # family -> the first row that showed it
        self.seen: set[Any] = set()
        self.counts: Counter[str] = Counter()
        self.width: int | None = None

    def tokens(self, column: Column, split: str) -> list[Any]:
        """Each row's class as a word, a whole number or a truth value; None: no label."""
        keys = [_key(value) for value in column.values]
        known: dict[Any, Any] = {}
        for row, (key, many) in zip(_firsts(keys), Counter(keys).items(), strict=True):
            value, before = column.values[row], self.width
            try:
                family, token = self._token(value, column.names, many)
            except Wrong as error:
                raise DataError(f"{self.what}: {split}/{row} holds {shown(value)}: {error}") from None
            except (TypeError, ValueError, OverflowError):  # what can't be compared or turned into a number
                raise DataError(
                    f"{self.what}: {split}/{row} holds {shown(value)}: classes are whole numbers or words"
                ) from None
            known[key] = token
            if self.width != before:  # a list that names no class is no word either
                self.first.setdefault("numbers", f"{split}/{row}")
            if family is not None:
                self.first.setdefault(family, f"{split}/{row}")
                self.seen.add(token)
        return [known[key] for key in keys]

    def _token(self, value: Any, names: tuple[str, ...], many: int) -> tuple[str | None, Any]:
        if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
            value = self._from_list(value)
        family, token = scalar(value)
        if names and family == "numbers":
            return named(token, names)
        if family is None and isinstance(value, str) and value.strip():
            self.counts[value.strip()] += many
        elif family == "numbers" and not isinstance(value, numbers.Integral):
            self.counts["float"] += many
        elif family == "dates":
            self.counts["date"] += many
        return family, token

    def _from_list(self, values: Any) -> Any:
        """The class that a list of one class, or a one-hot list, names.

        Raises:
            Wrong: several classes, or lists that are neither.
        """
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if any(isinstance(v, (list, tuple, Mapping, np.ndarray)) for v in values):
            raise Wrong("a class a row is wanted, not a map or a structure")
        values = [v for v in values if not absent(v)]
        if len(values) < 2:
            return values[0] if values else None
        if any(isinstance(v, str) for v in values):
            raise Wrong("several classes in one row (multi-label); one a row is wanted, or data.multilabel=true")
        hot = [float(v) for v in values]
        if any(v not in (0.0, 1.0) for v in hot):
            raise Wrong("a list is a class only if it is one-hot, a single 1 among 0s")
        if sum(hot) > 1:
            raise Wrong(f"{int(sum(hot))} classes in one row (multi-label); one a row is wanted, or "
                         "data.multilabel=true")  # fmt: skip
        if self.width is not None and self.width != len(hot):
            raise Wrong(f"{len(hot)} entries where other rows have {self.width}")
        self.width = len(hot)
        self.counts["one-hot"] += 1
        return hot.index(1.0) if sum(hot) else None

    def names(self, columns: Mapping[str, Column]) -> list[Any]:
        """The classes in their order: of the first `ClassLabel`, then sorted.

        Raises:
            DataError: kinds that differ, or not at least two classes.
        """
        if len(self.first) > 1:
            shown = " and ".join(f"{_FAMILIES[family]} ({where})" for family, where in sorted(self.first.items()))
            raise DataError(f"{self.what} holds {shown}: make them of one kind")
        if "numbers" in self.first and self.width is None:
            self.seen.discard(-1)
        declared = [name for column in columns.values() for name in column.names]
        names: list[Any] = list(dict.fromkeys(declared))
        if self.width is not None:
            names = [*range(self.width)]
        names += sorted(self.seen - set(names))
        if len(names) < 2 or len(names) > MOST_CLASSES:
            raise DataError(f"{self.what} holds {len(names):,} different values; classes are wanted")
        return names

    def notes(self) -> list[str]:
        """What a person should know of how labels were read."""
        counts, found = Counter(self.counts), []
        for key, text in (("one-hot", "one-hot lists are read as classes"), ("float", "whole numbers with a point are "
                          "read as classes"), ("date", "dates are read as classes, a day each")):  # fmt: skip
            if counts.pop(key, 0):
                found.append(f"labels: {text}")
        found += [f"labels: {count:,} rows say {word!r}: no label" for word, count in counts.items()]
        return found


def _key(value: Any) -> Any:
    """Equal for equal values of one type."""
    if isinstance(value, (list, tuple, np.ndarray, Mapping)):
        return repr(value if not isinstance(value, np.ndarray) else value.tolist())
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value), value


def _firsts(keys: Sequence[Any]) -> list[int]:
    """Where each different key stands first."""
    seen: dict[Any, int] = {}
    for row, key in enumerate(keys):
        seen.setdefault(key, row)
    return list(seen.values())


def absent(value: Any) -> bool:
    """Whether a value stands for none."""
    if value is None or value is Ellipsis:
        return True
    if isinstance(value, str):
        return value.strip() in ABSENT
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return math.isnan(float(value))
    return str(value) in ("NaT", "<NA>")


def scalar(value: Any) -> tuple[str | None, Any]:
    """Family and token of a single value; family None: no label.

    Raises:
        Wrong: it is no class.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if absent(value):
        return None, None
    if isinstance(value, bool):
        return "flags", value
    if isinstance(value, int):
        return ("numbers", value) if value != -1 else (None, None)  # the usual sign for a label that is kept back
    if isinstance(value, (float, Decimal)):
        if not math.isfinite(value) or value != int(value):
            raise Wrong("classes are whole numbers or words")
        return ("numbers", int(value)) if value != -1 else (None, None)
    if isinstance(value, str):
        return "words", value
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    if isinstance(value, (date, datetime, time)):
        return "dates", value.isoformat()
    if isinstance(value, Mapping):
        fields = ", ".join(map(str, list(value)[:4]))
        raise Wrong(f"a structure ({fields}); make a column of the field that holds the class")
    if isinstance(value, (bytes, timedelta)):
        raise Wrong("classes are whole numbers or words")
    raise Wrong(f"a {type(value).__name__}, where classes are whole numbers or words")


def named(number: int, names: tuple[str, ...]) -> tuple[str | None, Any]:
    """A `ClassLabel`'s number as its name."""
    if not 0 <= number < len(names):
        raise Wrong(f"its column names {len(names)} classes, 0 to {len(names) - 1}")
    return "words", names[number]


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
