"""Published sets: prepared data of a task, opened as its splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import ranks
from ...errors import ConfigError, DataError
from ..prepared.cut import limited, protocol_splits, publisher_splits
from ..prepared.store import PreparedSplit, read_card
from ..split import Split
from ..task import SPLITS, Task
from .folder import check_card
from .opening import HUB, download_prepared
from .registry import folder_of


def open_splits(
    task: Task, directory: str | None = None, *, group: int = 0, limit: int | None = None, split: str = "protocol",
    indices: str | None = None,
) -> dict[str, Split]:  # fmt: skip
    """The train, validation and test instances of prepared data.

    Data prepared with splits keeps them; data prepared in one piece is cut 60/20/20 by the paper's permutation of its
    seed group (data protocol), by a table's, or where the publisher cut it.

    Args:
        directory: the prepared folder, or hub:org/name for one that somebody published; None: the task's own place.
        group: seed group, from 0.
        limit: use this many instances in all.
        split: "protocol", or "publisher" for the publisher's own parts.
        indices: a csv file of seed groups in place of the protocol's; see `prepared.indices`.

    Raises:
        DataError: nothing prepared there, data of another task, or rows in an order that the paper's groups aren't of.
        ConfigError: `indices` for data with splits of their own.
    """
    folder = _folder(task, directory)
    if task.embedded and task.prepare and directory is None:
        # one process a node: nodes may not share the folder
        if os.environ.get("LOCAL_RANK", "0") == "0" and not (folder / "card.json").exists():
            task.prepare(folder)
        ranks.wait()
    card = read_card(folder)
    if card.get("task") != task.name:
        raise DataError(f"{folder} holds data of {card.get('task')!r}, not of {task.name!r}; point data.dir elsewhere")
    check_card(task, card, folder)
    if set(card["splits"]) == {"all"}:
        whole = PreparedSplit(folder, "all", card)
        if split == "publisher":
            return publisher_splits(whole, limit)
        _check_order(task, card, folder)
        return protocol_splits(whole, group, limit, indices)
    if indices is not None:
        raise ConfigError(f"data.indices: {folder} has splits of its own; leave it out")
    return limited({name: PreparedSplit(folder, name, card) for name in SPLITS}, limit)


def card_of(task: Task, directory: str | None) -> dict[str, Any]:
    """The card of the data that `open_splits` opens.

    Raises:
        DataError: nothing prepared there.
    """
    return read_card(_folder(task, directory))


def _folder(task: Task, directory: str | None) -> Path:
    if directory and directory.startswith(HUB):
        directory = str(download_prepared(directory))
    return folder_of(task, directory)


def _check_order(task: Task, card: Mapping[str, Any], folder: Path) -> None:
    """Data prepared before rows had the paper's order would silently be cut into other groups than they were."""
    if "order" not in card:
        raise DataError(
            f"{folder} was prepared before its seed groups were the paper's (card.json names no order of rows): run "
            f"the same mstdistill prepare {task.name} again, which keeps rows that stand in order; or set "
            "data.split=publisher"
        )
