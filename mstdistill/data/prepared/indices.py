"""Seed groups from a table: the authors' `metadata/<name>_indices.csv`, a permutation of all rows a column."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...errors import DataError, first_line


def read_permutation(path: Path, group: int, count: int) -> np.ndarray:
    """A seed group's order of the rows, int64 [count], from the column `group_<group>`; other columns are passed over.

    Raises:
        DataError: no such file or column, another number of rows than the data, or a column that isn't a permutation.
    """
    name = f"group_{group}"
    values = _column(path, name)
    if len(values) != count:
        raise DataError(f"{path}: {name} orders {len(values):,} rows, the data have {count:,}; an index file goes with "
                        "the very data that it was made for")  # fmt: skip
    order = np.full(count, -1, dtype=np.int64)
    line_of: dict[int, int] = {}
    for position, (line, text) in enumerate(values):
        row = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
        if not 0 <= row < count:
            raise DataError(f"{path}, line {line}: {name} has {text[:40]!r}, which is no row from 0 to {count - 1}")
        if row in line_of:
            raise DataError(f"{path}, line {line}: {name} is no permutation: row {row} stands in line {line_of[row]} "
                            "too")  # fmt: skip
        line_of[row] = line
        order[position] = row
    return order


def _column(path: Path, name: str) -> list[tuple[int, str]]:
    """Each value of a column with its line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = list(reader.fieldnames or ())
            if name not in found:
                groups = [column for column in found if column.startswith("group_")]
                have = f"{groups[0]} to {groups[-1]}" if groups else ", ".join(found[:8]) or "nothing"
                raise DataError(f"{path}: no column {name!r} (found: {have}); choose another data.group or file")
            return [(reader.line_num, (row[name] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.indices {path} can't be read ({first_line(error)}); name a csv file with the columns "
                        "group_0, group_1, ...") from None  # fmt: skip
