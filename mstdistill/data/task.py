"""Tasks: named modalities, classes and a source. One file per data set defines `TASK`; a task knows no method."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import ranks
from ..errors import ConfigError, DataError, nearest
from .loader import Split, Subset
from .opening import HUB, download_prepared
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
        modalities: name -> shape without the batch; None: any length, the prepared data say which.
        num_classes: labels are 0 to num_classes - 1.
        class_names: for tables.
        ignore_index: a label that doesn't count, for dense tasks.
        options: settings of `prepare` with their defaults and help.
        prepare: makes the data in a folder; called with it, whom to tell, and options; none for a user's own data.
        embedded: needs no files: prepared by itself on first use.
        version: changes when `prepare` makes other data from the same settings.
    """

    name: str
    title: str
    modalities: Mapping[str, tuple[int | None, ...]]
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
        if not module.ispkg:
            task: Task | None = getattr(importlib.import_module(f"mstdistill.data.{module.name}"), "TASK", None)
            if task is not None:
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
    task: Task, directory: str | None = None, *, group: int = 0, limit: int | None = None, split: str = "protocol"
) -> dict[str, Split]:
    """The train, validation and test instances of prepared data.

    Data prepared with splits keeps them; data prepared in one piece is cut 60/20/20 by the permutation of its seed
    group (data protocol), or where the publisher cut it.

    Args:
        directory: the prepared folder, or hub:org/name for one that somebody published; None: the task's own place.
        group: seed group, from 0.
        limit: use this many instances in all.
        split: "protocol", or "publisher" for the publisher's own parts.

    Raises:
        DataError: nothing prepared there, or data of another task.
    """
    if directory and directory.startswith(HUB):
        directory = str(download_prepared(directory))
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
        return publisher_splits(whole, limit) if split == "publisher" else protocol_splits(whole, group, limit)
    return _limited({name: PreparedSplit(folder, name, card) for name in SPLITS}, limit)


def _limited(splits: Mapping[str, Split], limit: int | None) -> dict[str, Split]:
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
    rows = {name: np.flatnonzero(parts == number) for number, name in enumerate(SPLITS)}
    if not len(rows["train"]) or not len(rows["test"]):
        raise DataError(f"{whole.name}: the publisher gave no train and test parts; use data.split=protocol")
    if not len(rows["validation"]):
        order = np.random.default_rng(_PROTOCOL_SEED).permutation(rows["train"])
        cut = len(order) * 4 // 5
        rows["train"], rows["validation"] = np.sort(order[:cut]), np.sort(order[cut:])
    return _limited({name: Subset(whole, index) for name, index in rows.items()}, limit)


def _check_card(task: Task, card: Mapping[str, Any], folder: Path) -> None:
    for name, shape in task.modalities.items():
        found = card["modalities"].get(name)
        if found is None or not _fits(found["shape"], shape):
            raise DataError(
                f"{folder}: modality {name!r} should have shape {[n or 'any' for n in shape]}, "
                f"found {found['shape'] if found else 'none'}; prepare the data again"
            )


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w in (None, n) for n, w in zip(found, wanted, strict=True))


def protocol_splits(whole: Split, group: int, limit: int | None) -> dict[str, Split]:
    """60/20/20 by the permutation of a seed group (data protocol)."""
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
