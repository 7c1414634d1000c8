"""What people call instances: a column of file names or ids, compared by its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, nearest
from .opening import Raw
from .python import DatasetSplit


@dataclass(frozen=True)
class Naming:
    """From a prepared row's key, "split/row", to what the user's own column calls it.

    Attributes:
        names: split -> name of each row, None where it has none.
    """

    names: Mapping[str, Sequence[str | None]]

    def __call__(self, keys: Sequence[str]) -> list[str | None]:
        places = (key.rpartition("/") for key in keys)
        return [self.names[split][int(row)] for split, _, row in places]


def as_text(values: Iterable[Any], what: str) -> list[str | None]:
    """Keys by their text, so that 7 and "7" are one; None where there is none.

    Args:
        what: the column as a message calls it.

    Raises:
        DataError: neither texts nor whole numbers.
    """
    plain = [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]
    for kind in dict.fromkeys(map(type, plain)):
        if not issubclass(kind, (str, int, type(None))) or kind is bool:
            row = next(i for i, value in enumerate(plain) if type(value) is kind)
            why = "; whole numbers become such where one of them is missing" if issubclass(kind, float) else ""
            raise DataError(f"{what}: row {row} is of type {kind.__name__}; keys are texts or whole numbers{why}")
    return [None if value is None or value == "" else str(value) for value in plain]


def own_names(raw: Raw, written: Mapping[str, Any], column: str, location: str) -> Naming:
    """What a column of a user's data calls each row.

    Args:
        raw: the splits that are used, under the names that prepared rows have.
        written: of a table, see `Raw`; files are then called as its cells do. Elsewhere by their path in the folder.

    Raises:
        DataError: no such column, or what is no key.
    """
    names = {}
    for split, data in raw.splits.items():
        source = next(iter(written.values())) if written else data
        known = list(source.features or source._resolve_features().features)  # a streamed one may not say
        if column not in known:
            raise DataError(f"{location}: {split} has no column {column!r} (data.key); {nearest(column, known)}")
        values = _values(source, column)
        names[split] = as_text([_path(value, location) for value in values],
                               f"{location}: {split}, column {column!r} (data.key)")  # fmt: skip
    return Naming(names)


def item_names(split: DatasetSplit, column: str) -> list[str | None]:
    """What a key of the items of a data set in Python calls each; of one that has columns nothing else is read.

    Raises:
        DataError: no item has it, or what is no key.
    """
    what = f"{split.name}: {column!r} (data.key)"
    if column in (getattr(split.dataset, "column_names", None) or ()) and hasattr(split.dataset, "with_format"):
        return as_text(_values(split.dataset.with_format(None), column), what)
    items = [split.item(i) for i in range(len(split))]
    if not any(column in item for item in items):
        raise DataError(f"{split.name}: no item has {column!r} (data.key); {nearest(column, map(str, items[0]))}")
    return as_text([item.get(column) for item in items], what)


def _values(data: Any, column: str) -> list[Any]:
    """A column of `datasets`, files as their paths."""
    import datasets

    only = data.select_columns([column])
    feature = (only.features or {}).get(column)
    if isinstance(feature, (datasets.Image, datasets.Audio)):
        only = only.cast_column(column, type(feature)(decode=False))
    return list(only[column]) if hasattr(only, "num_rows") else [row[column] for row in only]


def _path(value: Any, location: str) -> Any:
    """A file's path in the data's folder; what is no file stays."""
    if not isinstance(value, Mapping) or "path" not in value:
        return value
    path, folder = Path(value["path"] or ""), Path(location).expanduser().absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else value["path"]
