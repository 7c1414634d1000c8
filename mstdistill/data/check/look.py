"""Looking a data set over before anything is trained: every instance once, in constant memory.

`check` takes a prepared folder, a `datasets` folder, a file, `hub:org/name`, or any torch data set whose items are
mappings; it gives figures, what is wrong and what is odd, in plain words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...config import DataSettings
from ...errors import DataError
from ..decode.value import decode
from ..prepared.store import PreparedSplit, read_card
from ..sources.opening import HUB, download_prepared, open_raw
from ..sources.own import MOST_CLASSES, choose_columns, named_splits, undecoded
from ..sources.registry import tasks
from ..task import Task
from .findings import ColumnFindings, LabelFindings, judge

# An instance: its values by modality (an error instead of a value that can't be read) and its label.
Row = tuple[dict[str, Any], Any]


@dataclass
class Report:
    """What was found.

    Attributes:
        figures: everything counted; JSON.
        wrong: what must be mended before training.
        odd: what is worth a look.
    """

    figures: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the data can be trained on."""
        return not self.wrong

    def save(self, path: Path) -> None:
        """Write figures and findings as JSON."""
        from ...files import write_text

        write_text(path, json.dumps({**self.figures, "wrong": self.wrong, "odd": self.odd}, indent=1))

    def __str__(self) -> str:
        from rich.console import Console

        from .tables import report_tables

        console = Console(width=110)
        with console.capture() as shown:
            for table in report_tables(self):
                console.print(table)
        return shown.get()


@dataclass
class _Source:
    """Instances to look at: splits as iterators of rows, kinds by modality, class names where they are known."""

    name: str
    kinds: dict[str, str]
    splits: dict[str, Iterator[Row]]
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()


def check(data: Any, label: str = "label", *, rows: int | None = None) -> Report:
    """Look a data set over.

    Args:
        data: a folder, a file, `hub:org/name`, a torch data set of mappings, or several of them by split name.
        label: the column of the classes.
        rows: look at this many of each split; None: at all.

    Raises:
        DataError: nothing there, or nothing that can be read as data.
    """
    source = _located(str(data), label) if isinstance(data, (str, Path)) else _in_memory(data, label)
    columns = {name: ColumnFindings(name, kind) for name, kind in source.kinds.items()}
    labels = LabelFindings(source.classes, source.ignore, MOST_CLASSES)
    counts: dict[str, int] = {}
    for split, instances in source.splits.items():
        counts[split] = 0
        for values, target in instances:
            if rows is not None and counts[split] >= rows:
                break
            counts[split] += 1
            for name, found in columns.items():
                found.add(split, values.get(name))
            labels.add(split, target)
    figures = {
        "data": source.name,
        "splits": counts,
        "modalities": {name: found.figures() for name, found in columns.items()},
        "label": labels.figures(),
    }
    wrong, odd = judge(counts, list(columns.values()), labels)
    return Report(figures, wrong, odd)


def _located(location: str, label: str) -> _Source:
    path = Path(location).expanduser()
    if location.startswith(HUB):
        try:
            return _prepared(download_prepared(location))
        except DataError:
            return _raw(location, label)
    return _prepared(path) if (path / "card.json").exists() else _raw(location, label)


def _raw(location: str, label: str) -> _Source:
    raw = open_raw(location)
    raw, _ = named_splits(raw, location)
    columns, kinds = choose_columns(raw, DataSettings(label=label), location)
    first = next(iter(raw.splits.values()))
    names = tuple(getattr((first.features or {}).get(label), "names", None) or ())

    def instances(split: str) -> Iterator[Row]:
        wanted = undecoded(raw.splits[split]).select_columns([*columns, label])
        for number, row in enumerate(wanted):
            values: dict[str, Any] = {}
            for modality, column in columns.items():
                try:
                    where = f"{column} of {split}/{number}"
                    values[modality] = None if row[column] is None else decode(kinds[modality], row[column], where)
                except DataError as error:
                    values[modality] = error
            yield values, row[label]

    return _Source(location, kinds, {split: instances(split) for split in raw.splits}, names)


def _prepared(folder: Path) -> _Source:
    card = read_card(folder)
    task = _shipped(card.get("task"))
    names = [name for name in card["modalities"] if name not in ("label", "part")]
    names = [name for name in names if name in task.modalities] if task and task.modalities else names

    def instances(split: str) -> Iterator[Row]:
        import torch

        data = PreparedSplit(folder, split, card)
        for start in range(0, len(data), 64):
            index = torch.arange(start, min(start + 64, len(data)))
            taken = {name: data.columns[name].take(index).numpy() for name in [*names, "label"]}
            for i in range(len(index)):
                yield {name: taken[name][i] for name in names}, taken["label"][i]

    classes = tuple(card.get("classes", ()))
    ignore: tuple[int, ...] = ()
    if task is not None and task.num_classes:
        classes = task.class_names or tuple(map(str, range(task.num_classes)))
        ignore = () if task.ignore_index is None else (task.ignore_index,)
    splits = {split: instances(split) for split in card["splits"]}
    return _Source(str(folder), dict.fromkeys(names, "array"), splits, classes, ignore)


def _shipped(name: Any) -> Task | None:
    return tasks().get(str(name))


def _in_memory(data: Any, label: str) -> _Source:
    parts = dict(data) if isinstance(data, Mapping) else {"data": data}
    kinds: dict[str, str] = {}
    for name, part in parts.items():
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise DataError(f"{name}: a data set with a length and positions is wanted, not {type(part).__name__}")
        first = part[0] if len(part) else {}
        if not isinstance(first, Mapping):
            raise DataError(
                f"{name}: each item must be a mapping of modalities and {label!r}, not {type(first).__name__}"
            )
        kinds |= {key: _kind(value) for key, value in first.items() if key != label}

    def instances(part: Any) -> Iterator[Row]:
        for number in range(len(part)):
            item = part[number]
            yield {key: _plain(value) for key, value in item.items() if key != label}, _plain(item.get(label))

    return _Source("data set", kinds, {name: instances(part) for name, part in parts.items()})


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "image" if hasattr(value, "getbands") else "array"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str) or hasattr(value, "getbands"):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    return array if array.dtype != object else DataError(f"no array but {type(value).__name__}")
