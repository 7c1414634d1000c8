"""A prepared folder, whoever made it, as a source of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import DataError
from ..prepared.store import HAS, PreparedSplit, read_card
from ..source import Labels, Modality, Row
from ..task import Task
from .registry import tasks

# Rows taken from disk together; rows are asked for one after the other.
_BLOCK = 64


class PreparedSource:
    """The rows of a prepared folder, as stored; a `Source`.

    Raises:
        DataError: no prepared data there, damaged ones, or a task's in other shapes than its own.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder, self.card = folder, read_card(folder)
        self.task = tasks().get(str(self.card.get("task")))
        if self.task is not None:
            check_card(self.task, self.card, folder)
        self.parts = {split: PreparedSplit(folder, split, self.card) for split in self.card["splits"]}
        self._block: tuple[str, int, dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def fingerprint(self) -> str:
        """Of all splits."""
        return "|".join(part.fingerprint for part in self.parts.values())

    @property
    def modalities(self) -> dict[str, Modality]:
        """Arrays of the card's shapes; of a task that ships, its own modalities alone."""
        known = self.task.modalities if self.task is not None and self.task.modalities else None
        return {
            name: Modality("array", tuple(facts["shape"])) for name, facts in self.card["modalities"].items()
            if name not in ("label", "part") and not name.startswith(HAS) and (known is None or name in known)
        }  # fmt: skip

    @property
    def lacking(self) -> bool:
        """Whether instances may lack a modality."""
        return any(part.present for part in self.parts.values())

    @property
    def labels(self) -> Labels:
        """As the card names them; where it doesn't, as the task does."""
        task = self.task if self.task is not None and self.task.num_classes else None
        names = tuple(self.card.get("classes", ())) or (task.class_names if task is not None else ())
        kind = ("classes", "several", "maps")[len(self.card["modalities"]["label"]["shape"])]
        count = task.num_classes if task is not None else len(names) or None
        return Labels(kind, names, count, task.ignore_index if task is not None else None)

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split."""
        return {split: len(part) for split, part in self.parts.items()}

    def row(self, split: str, position: int) -> Row:
        """See `Source`; numbers as they are stored."""
        start = position - position % _BLOCK
        if self._block is None or self._block[:2] != (split, start):
            part = self.parts[split]
            index = torch.arange(start, min(start + _BLOCK, len(part)))
            wanted = [*self.modalities, "label"]
            self._block = split, start, {name: part.columns[name].take(index).numpy() for name in wanted}
        values = {name: column[position - start] for name, column in self._block[2].items()}
        label = values.pop("label")
        present = self.parts[split].present
        return Row({name: x if name not in present or present[name][position] else None for name, x in values.items()},
                   label)  # fmt: skip

    def called(self, split: str, position: int) -> str:
        """See `Source`."""
        return f"{split}: {self.parts[split].called_at(position)}"


def check_card(task: Task, card: Mapping[str, Any], folder: Path) -> None:
    """Whether prepared data hold a task's modalities in its shapes; training and `check` judge by the same rule.

    Raises:
        DataError: which one doesn't.
    """
    for name, shape in task.modalities.items():
        found = card["modalities"].get(name)
        if found is None or not _fits(found["shape"], shape):
            raise DataError(
                f"{folder}: modality {name!r} should have shape {[n or 'any' for n in shape]}, "
                f"found {found['shape'] if found else 'none'}; prepare the data again"
            )


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w in (None, n) for n, w in zip(found, wanted, strict=True))
