"""Looking a data set over before anything is trained: every instance once, in constant memory.

`check` takes a prepared folder, a `datasets` folder, a file, `hub:org/name`, or data sets in Python; it gives figures,
what is wrong and what is odd, in plain words. Rows come through the same door as in training and are judged by the same
rules: what it calls usable can be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...config import DataSettings
from ...errors import DataError
from ..instance import attempted, decoded, unfit
from ..prepared.cut import check_counts, protocol_rows, publisher_rows
from ..prepared.store import CARD
from ..present import absent
from ..source import Source
from ..sources.folder import PreparedSource
from ..sources.labels import MOST_CLASSES
from ..sources.opening import HUB, download_prepared
from ..sources.own import OwnData, open_own
from ..sources.python import DatasetSplit
from .findings import ColumnFindings, LabelFindings, Rows, judge


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

        console = Console(width=110, markup=False, emoji=False)
        with console.capture() as shown:
            for table in report_tables(self):
                console.print(table)
        return shown.get()


def check(
    data: Any,
    label: str = "label",
    *,
    rows: int | None = None,
    columns: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    max_broken: float = 0.02,
    missing: Literal["refuse", "allow"] = "refuse",
    multilabel: bool = False,
    label_columns: Sequence[str] | None = None,
) -> Report:
    """Look a data set over.

    Args:
        data: a folder, a file, `hub:org/name`, a data set in Python, or several of them by split name.
        label: the column of the classes.
        rows: look at this many of each split; None: at all.
        columns: of raw data: modality -> column; None: every usable column under its own name.
        names: of the places of a tuple, for data sets in Python.
        max_broken: of raw data: share of instances that may be unreadable, as in `data.max_broken`.
        missing: allow: instances that lack a modality can be used, as in `data.missing`.
        multilabel, label_columns: whether an instance may have several classes at once, as in `data`.

    Raises:
        DataError: nothing there, or nothing that can be read as data.
    """
    if isinstance(data, (str, Path)):
        settings = DataSettings(dir=str(data), label=label, columns=dict(columns) if columns else None,
                                max_broken=max_broken, missing=missing, multilabel=multilabel,
                                label_columns=list(label_columns) if label_columns else None)  # fmt: skip
        sources: list[Source] = [_located(settings)]
        called = str(data)
    else:
        parts = data if isinstance(data, Mapping) and not hasattr(data, "column_names") else {"data": data}
        if not parts:
            raise DataError("check: no data set was given")
        allowed = missing == "allow"
        sources = [DatasetSplit(part, label, names=names, name=str(name), missing=allowed, several=multilabel)
                   for name, part in parts.items()]  # fmt: skip
        called = "data set"
    return _Looking(sources, called).over(rows)


def _located(settings: DataSettings) -> Source:
    location = str(settings.dir)
    if location.startswith(HUB):
        try:
            return PreparedSource(download_prepared(location))
        except DataError:
            return open_own(settings)
    path = Path(location).expanduser()
    return PreparedSource(path) if (path / CARD).exists() else open_own(settings)


class _Looking:
    """Every row of some sources, looked at once."""

    def __init__(self, sources: Sequence[Source], called: str) -> None:
        self.sources, self.called = sources, called
        labels = sources[0].labels
        names = labels.names or tuple(map(str, range(labels.count or 0)))
        self.labels = LabelFindings(names, () if labels.ignore is None else (labels.ignore,), MOST_CLASSES,
                                    labels.kind == "several")  # fmt: skip
        self.columns = {
            name: ColumnFindings(name, modality.kind) for one in sources for name, modality in one.modalities.items()
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rows = Rows()
        self.unusable: set[tuple[str, int]] = set()

    def over(self, most: int | None) -> Report:
        """The report, after at most so many rows of each split."""
        counts: dict[str, int] = {}
        for source in self.sources:
            for split, rows in source.splits.items():
                counts[split] = rows if most is None else min(rows, most)
                for position in range(counts[split]):
                    self._look(source, split, position)
        self.rows.limit = min(float(getattr(source, "max_broken", 0.0)) for source in self.sources)
        wrong, odd = judge(counts, list(self.columns.values()), self.labels, self.rows)
        if not wrong and most is None:
            wrong = list(self._uncut())
        notes = [note for source in self.sources for note in source.notes]
        figures = {
            "data": self.called,
            "splits": counts,
            "modalities": {name: found.figures() for name, found in self.columns.items()},
            "label": self.labels.figures(),
            "rows": self.rows.figures(),
            "notes": notes,
        }
        return Report(figures, wrong, [*notes, *odd])

    def _look(self, source: Source, split: str, position: int) -> None:
        where = source.called(split, position)
        try:
            row = attempted(where, lambda: source.row(split, position))
        except DataError as error:
            self._count(split, position, [str(error)])
            return
        self.labels.add(split, row.label)
        labelled = not (np.ndim(row.label) == 0 and (row.label is None or int(row.label) == -1))
        if self.labels.several and labelled:
            labelled = bool((np.asarray(row.label) >= 0).any())
        troubles, lacking = [], bool(getattr(source, "lacking", False))
        nothing = [name for name in source.modalities if lacking and absent(row.values.get(name))]
        if lacking and len(nothing) == len(source.modalities):
            troubles.append(f"{where} holds none of {', '.join(nothing)}")
        for name, modality in source.modalities.items():
            found = None if name in nothing else self._decoded(source, name, row.values.get(name), where)
            self.columns[name].add(split, found)
            if name in nothing:
                continue
            if isinstance(found, DataError) or found is None:
                troubles.append(str(found) if found is not None else f"{name} of {where} is missing")
            elif modality.kind == "array":
                if labelled and not unfit(found, None):  # the first usable one says what the others' shape must be
                    self.shapes.setdefault(name, found.shape)
                trouble = unfit(found, modality.shape or self.shapes.get(name))
                troubles += [f"{name} of {where} {trouble}"] if trouble else []
        if labelled:
            self._count(split, position, troubles, complete=not nothing)

    def _decoded(self, source: Source, name: str, raw: Any, where: str) -> Any:
        if raw is None:
            return None
        try:
            return decoded(source.modalities[name], raw, f"{name} of {where}")
        except DataError as error:
            return error

    def _count(self, split: str, position: int, troubles: list[str], complete: bool = True) -> None:
        self.rows.count(troubles, complete)
        if troubles:
            self.unusable.add((split, position))

    def _uncut(self) -> Iterator[str]:
        """Why the rows that are left can't be cut into train, validation and test."""
        try:
            for source in self.sources:
                if isinstance(source, OwnData):
                    parts = np.array([item.part for item in source.items if item.source not in self.unusable])
                    if source.parted:
                        publisher_rows(parts, self.called)
                    else:
                        protocol_rows(len(parts), 0, None)
                elif isinstance(source, PreparedSource):
                    check_counts(source.splits)
        except DataError as error:
            yield str(error)
