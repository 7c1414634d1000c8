"""Tasks: named modalities, classes and a source. One file per data set defines `TASK`; a task knows no method."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import ranks
from ..errors import ConfigError, DataError, nearest
from .loader import Split, Subset
from .store import PreparedSplit, read_card

SPLITS = ("train", "validation", "test")
# The paper's protocol: seed groups are drawn in turn from one generator.
_PROTOCOL_SEED = 19980427


@dataclass(frozen=True)
class Task:
    """What a data set asks for.

    Attributes:
        name: as recipes and the command line call it.
        title: one line for people.
        modalities: name -> shape without the batch.
        num_classes: labels are 0 to num_classes - 1.
        class_names: for tables.
        ignore_index: a label that doesn't count, for dense tasks.
        options: settings of `prepare` with their defaults and help.
        prepare: makes the data in a folder; called with the folder and options; none for a user's own data.
        embedded: needs no files: prepared by itself on first use.
        version: changes when `prepare` makes other data from the same settings.
    """

    name: str
    title: str
    modalities: Mapping[str, tuple[int, ...]]
    num_classes: int
    prepare: Callable[..., Path] | None = None
    class_names: tuple[str, ...] = ()
    ignore_index: int | None = None
    embedded: bool = False
    version: int = 1
    options: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def tasks() -> dict[str, Task]:
    """Every task that this package ships."""
    package = importlib.import_module("mstdistill.data")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg or module.name in ("loader", "resident", "store", "task"):
            continue
        task: Task = importlib.import_module(f"mstdistill.data.{module.name}").TASK
        found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: unknown; the message lists the nearest.
    """
    known = tasks()
    if name not in known:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, known)}")
    return known[name]


def home() -> Path:
    """Where embedded data is kept: $MSTDISTILL_HOME, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MSTDISTILL_HOME") or Path(cache) / "mstdistill")


def folder_of(task: Task, directory: str | None) -> Path:
    """Where a task's prepared data lies."""
    return Path(directory).expanduser() if directory else home() / f"{task.name}-v{task.version}"


def open_splits(
    task: Task, directory: str | None = None, *, group: int = 0, limit: int | None = None
) -> dict[str, Split]:
    """The train, validation and test instances of prepared data.

    Data prepared with splits keeps them; data prepared in one piece is cut 60/20/20 by the permutation of its seed
    group (data protocol).

    Args:
        directory: the prepared folder; None: the task's own place.
        group: seed group, from 0.
        limit: use this many instances in all.

    Raises:
        DataError: nothing prepared there, or data of another task.
    """
    folder = folder_of(task, directory)
    if task.embedded and task.prepare and directory is None:
        # one process a node: nodes may not share the folder
        if os.environ.get("LOCAL_RANK", "0") == "0" and not (folder / "card.json").exists():
            task.prepare(folder)
        ranks.wait()
    card = read_card(folder)
    if card.get("task") != task.name:
        raise DataError(f"{folder} holds data of {card.get('task')!r}, not of {task.name!r}; point data.dir elsewhere")
    _check_card(task, card, folder)
    if set(card["splits"]) == {"all"}:
        whole = PreparedSplit(folder, "all", card)
        return _cut(whole, group, limit)
    splits: dict[str, Split] = {name: PreparedSplit(folder, name, card) for name in SPLITS}
    if limit is not None:
        total = sum(len(split) for split in splits.values())
        splits = {
            name: Subset(split, np.arange(min(len(split), max(1, limit * len(split) // total))))
            for name, split in splits.items()
        }
    return splits


def _check_card(task: Task, card: Mapping[str, Any], folder: Path) -> None:
    for name, shape in task.modalities.items():
        found = card["modalities"].get(name)
        if found is None or tuple(found["shape"]) != tuple(shape):
            raise DataError(
                f"{folder}: modality {name!r} should have shape {list(shape)}, "
                f"found {found['shape'] if found else 'none'}; prepare the data again"
            )


def _cut(whole: Split, group: int, limit: int | None) -> dict[str, Split]:
    generator = np.random.default_rng(_PROTOCOL_SEED)
    count = len(whole)
    order = generator.permutation(count)
    for _ in range(group):
        order = generator.permutation(count)
    if limit is not None:
        order = order[:limit]
    first, second = len(order) * 6 // 10, len(order) * 8 // 10
    if first == 0 or second == first or second == len(order):
        raise DataError(f"{len(order)} instances are too few to cut into train, validation and test")
    parts = (order[:first], order[first:second], order[second:])
    return {name: Subset(whole, part) for name, part in zip(SPLITS, parts, strict=True)}
