"""Whether a column of lists can only be several classes an instance: said with the setting, never taken for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import DataError
from .labels import Column, absent, shown


def refuse_several(columns: Mapping[str, Column], what: str) -> None:
    """Refuse a column that holds a list in every row, one of which is neither a single class nor one-hot.

    Args:
        columns: by split.
        what: the column as a message calls it.

    Raises:
        DataError: it is one; the message names such a row and the setting that takes it.
    """
    first = ""
    for split, column in columns.items():
        for i, value in enumerate(column.values):
            if not isinstance(value, (list, tuple, np.ndarray)):
                if absent(value):
                    continue
                return
            if not first and _several(value.tolist() if isinstance(value, np.ndarray) else list(value)):
                first = f"{split}/{i} holds {shown(value)}"
    if first:
        raise DataError(f"{what}: labels are lists, several classes an instance (multi-label; {first}): write "
                        "data.multilabel=true (mstdistill check: --multilabel)")  # fmt: skip


def _several(values: list[Any]) -> bool:
    """Whether a list can't be one class: of several classes, or of 0s and 1s with more than a single 1."""
    values = [value for value in values if not absent(value)]
    flags = all(isinstance(value, (int, float)) and value in (0, 1) for value in values)
    if len(values) < 2 or flags:
        return flags and sum(map(int, values)) > 1
    return all(isinstance(value, (str, int)) for value in values)  # fractions and structures are no classes at all
