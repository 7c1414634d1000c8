"""What `distill` is given, as a run takes it: data sets as splits, logits of teachers that are files beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .config import Recipe
from .data.keyed_logits import LogitsFile, with_logits
from .data.sources.keys import item_names
from .data.sources.python import DatasetSplit
from .data.split import Split, identities
from .data.task import Task
from .teachers.given import Given
from .teachers.tap import Teacher

_NAMELESS = (
    'nothing names the instances: settings={"data": {"key": NAME}} names a key of their items that does; else logits '
    "go by the order of rows (.npy, .safetensors)"
)


def as_splits(
    given: Mapping[str, Any], teachers: Sequence[Teacher], target: str, recipe: Recipe, dtype: torch.dtype,
    say: Callable[[str], None], *, label: str, names: Sequence[str] | None, class_names: Sequence[str],
    ignore_index: int | None,
) -> dict[str, Split]:  # fmt: skip
    """The data sets that are there, as splits with what the networks see.

    Args:
        given: "train", "validation", "test" -> a data set, a split, or None.
        dtype: of floating-point values.
        say: told how items were read, where that is another way than they were given.

    Raises:
        DataError: see `DatasetSplit`.
    """
    wanted = [target, *(modality for teacher in networks(teachers) for modality in teacher.modalities)]
    splits: dict[str, Split] = {}
    for name, data in given.items():
        if data is not None:
            splits[name] = data if isinstance(data, Split) else DatasetSplit(
                data, label, names=names, wanted=wanted, name=name, class_names=class_names, ignore=ignore_index,
                dtype=dtype, unlabelled=name == "train" and recipe.data.unlabelled == "learn",
                missing=recipe.data.missing == "allow", several=recipe.data.multilabel,
            )  # fmt: skip
    for note in dict.fromkeys(note for split in splits.values() for note in getattr(split, "notes", ())):
        say(note)
    return splits


def networks(teachers: Sequence[Teacher]) -> list[Teacher]:
    """Those that are more than a file."""
    return [teacher for teacher in teachers if not isinstance(teacher.module, Given) or teacher.module.file is None]


def beside_logits(
    splits: dict[str, Split], teachers: Sequence[Teacher], task: Task, key: str | None, say: Callable[[str], None]
) -> dict[str, Split]:  # fmt: skip
    """The splits with the logits of teachers that are files.

    Args:
        key: of the items, that names them (`data.key`).

    Raises:
        DataError: a file that doesn't fit.
    """
    modules = [(teacher.name, teacher.module) for teacher in teachers if isinstance(teacher.module, Given)]
    files = [LogitsFile(name, module.file, module.key) for name, module in modules if module.file is not None]

    def names(split: Split) -> Sequence[str | None] | None:
        if isinstance(split, DatasetSplit):
            return item_names(split, key) if key is not None else None
        return identities(split)

    return with_logits(splits, files, task, _NAMELESS, say, names) if files else splits
