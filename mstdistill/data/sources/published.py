"""Published sets: prepared data of a task, opened as its splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import ranks
from ...errors import DataError
from ..prepared.cut import limited, protocol_splits, publisher_splits
from ..prepared.store import PreparedSplit, read_card
from ..split import Split
from ..task import SPLITS, Task
from .opening import HUB, download_prepared
from .registry import folder_of


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
    return limited({name: PreparedSplit(folder, name, card) for name in SPLITS}, limit)


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
