"""Cutting instances into train, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ..split import Split, Subset
from ..task import SPLITS
from .indices import read_permutation
from .store import PreparedSplit

# The paper's protocol: seed groups are drawn in turn from one generator.
_PROTOCOL_SEED = 19980427


def limited(splits: Mapping[str, Split], limit: int | None) -> dict[str, Split]:
    """The first instances of each, in proportion, `limit` in all."""
    if limit is None:
        return dict(splits)
    total = sum(len(split) for split in splits.values())
    return {
        name: Subset(split, np.arange(min(len(split), max(1, limit * len(split) // total))))
        for name, split in splits.items()
    }


def publisher_splits(whole: PreparedSplit, limit: int | None) -> dict[str, Split]:
    """The parts that the publisher made; where there is no validation part, a fifth of the training part is it."""
    column = whole.columns.get("part")
    parts = column.take(torch.arange(len(whole))).numpy() if column else np.full(len(whole), -1)
    rows = publisher_rows(parts, whole.name, _bare(whole))
    return limited({name: Subset(whole, index) for name, index in rows.items()}, limit)


def publisher_rows(parts: np.ndarray, name: str, label: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Which rows are train, validation and test, by each row's part [N]: 0, 1, 2, or -1 for none.

    Args:
        label: [N] classes, -1 for none, where some training rows have none.

    Raises:
        DataError: no train or test part, or a training part too small to cut validation from.
    """
    rows = {name: np.flatnonzero(parts == number) for number, name in enumerate(SPLITS)}
    bare = np.zeros(0, dtype=np.int64)  # without a label: for training alone
    if label is not None:
        bare = np.flatnonzero((parts == 0) & (label < 0))
        rows["train"] = np.setdiff1d(rows["train"], bare)
    if not len(rows["train"]) or not len(rows["test"]):
        raise DataError(f"{name}: the publisher gave no train and test parts; use data.split=protocol")
    if not len(rows["validation"]):
        order = np.random.default_rng(_PROTOCOL_SEED).permutation(rows["train"])
        cut = len(order) * 4 // 5
        rows["train"], rows["validation"] = np.sort(order[:cut]), np.sort(order[cut:])
        if not cut:
            raise DataError(f"{name}: {len(order)} training instances are too few to cut validation from them")
    if len(bare):
        rows["train"] = np.union1d(rows["train"], bare)
    return rows


def protocol_splits(whole: Split, group: int, limit: int | None, indices: str | None = None) -> dict[str, Split]:
    """60/20/20 by the paper's permutation of a seed group, or by a file's.

    Args:
        indices: a table of the authors' form, with a permutation of all rows a seed group; see `read_permutation`.
    """
    if indices is None:
        order = released_order(len(whole), group)
    else:
        order = read_permutation(Path(indices).expanduser(), group, len(whole))
    return _subsets(whole, order, limit)


def own_splits(
    whole: PreparedSplit, group: int, limit: int | None, indices: str | None = None
) -> dict[str, Split]:  # fmt: skip
    """60/20/20 of a user's own data, which the paper says nothing of: their groups are of NumPy's newer generator.

    Rows without a label are all for training.
    """
    label = _bare(whole)
    if indices is not None:
        order = read_permutation(Path(indices).expanduser(), group, len(whole))
    else:
        generator = np.random.default_rng(_PROTOCOL_SEED)
        known: Any = len(whole) if label is None else np.flatnonzero(label >= 0)
        orders = [generator.permutation(known) for _ in range(group + 1)]
        order = orders[group]
    if label is None:
        return _subsets(whole, order, limit)
    bare = np.flatnonzero(label < 0)
    order = order[label[order] >= 0]
    if limit is not None:
        bare, limit = bare[: limit * len(bare) // len(whole)], max(3, limit * len(order) // len(whole))
    cut = cut_rows(order, limit)
    cut["train"] = np.concatenate([cut["train"], bare])
    return {name: Subset(whole, rows) for name, rows in cut.items()}


def _bare(whole: PreparedSplit) -> np.ndarray | None:
    """[N] classes, -1 for none; None where each row has one."""
    column = whole.columns["label"]
    if len(whole) and column.take(torch.arange(1)).dim() > 2:
        return None  # maps: a pixel without a class is ignored
    values: np.ndarray = column.take(torch.arange(len(whole))).numpy()
    if values.ndim == 2:  # several classes at once: whether anything is known
        values = values.max(axis=1)
    return values if bool((values < 0).any()) else None


def released_order(count: int, group: int) -> np.ndarray:
    """The paper's permutation of `count` rows for a seed group: the legacy Mersenne twister, drawn from group 0 on."""
    generator = np.random.RandomState(_PROTOCOL_SEED)
    for _ in range(group):
        generator.permutation(count)
    return generator.permutation(count)


def cut_rows(order: np.ndarray, limit: int | None = None) -> dict[str, np.ndarray]:
    """The first 60 % of rows for training, the next 20 % for validation, the last for testing.

    Args:
        order: rows [N].
        limit: use the first so many of them.

    Raises:
        DataError: too few.
    """
    order = order[:limit]
    first, second = len(order) * 6 // 10, len(order) * 8 // 10
    if first == 0 or second == first or second == len(order):
        raise DataError(f"{len(order)} instances are too few to cut into train, validation and test")
    return dict(zip(SPLITS, (order[:first], order[first:second], order[second:]), strict=True))


def protocol_rows(count: int, group: int, limit: int | None) -> dict[str, np.ndarray]:
    """Which of `count` rows are train, validation and test in a seed group of the paper.

    Raises:
        DataError: too few.
    """
    return cut_rows(released_order(count, group), limit)


def check_counts(counts: Mapping[str, int]) -> None:
    """Raises DataError for prepared splits that can't be trained on: an empty one, or too few to cut."""
    if set(counts) == {"all"}:
        cut_rows(np.arange(counts["all"]))
        return
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(f"the {empty[0]} split is empty")


def _subsets(whole: Split, order: np.ndarray, limit: int | None) -> dict[str, Split]:
    return {name: Subset(whole, rows) for name, rows in cut_rows(order, limit).items()}
