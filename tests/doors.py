"""The doors by which data enter, for tests: each takes the same rows and says what became of them.

A door gives every row's class by name (None: no label) or every row's value, or the one line with which it refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstdistill import check
from mstdistill.config import DataSettings
from mstdistill.data.prepared.views import make_view, open_views
from mstdistill.data.sources.own import OwnData, open_own
from mstdistill.data.split import Split
from mstdistill.engine.progress import Screen
from mstdistill.errors import MstdistillError

Rows = Mapping[str, Sequence[Any]]  # column -> values


@dataclass
class Refused:
    """A line of our own instead of data."""

    line: str


def refused(make: Callable[[], Any]) -> Any:
    """What `make` gives, or the line with which it refuses."""
    try:
        return make()
    except MstdistillError as error:
        return one_line(error)


def one_line(error: MstdistillError) -> Refused:
    """An error as a person sees it; more than a line, or an address in memory, is none."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert " object at 0x" not in text
    return Refused(text)


def arrow(folder: Path, splits: Mapping[str, Rows], features: Any = None) -> Path:
    """A `datasets` folder; features by split, where they aren't to be guessed."""
    import datasets

    datasets.disable_progress_bars()
    stored = datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    made = {}
    for name, rows in splits.items():
        kinds = features[name] if features else None
        sounds = [column for column in kinds or () if isinstance(kinds[column], datasets.Audio)]
        # sounds are stored as they are: encoding them needs another package
        plain = kinds and datasets.Features({**kinds, **dict.fromkeys(sounds, stored)})
        made[name] = datasets.Dataset.from_dict(dict(rows), features=plain)
        for column in sounds:
            made[name] = made[name].cast_column(column, kinds[column])
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def jsonl(folder: Path, splits: Mapping[str, Rows]) -> Path:
    """A file of JSON lines for each split."""
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(folder: Path, splits: Mapping[str, Rows]) -> Path:
    """A csv for each split."""
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(list(rows))
            writer.writerows(zip(*rows.values(), strict=True))
    return folder


def parquet(folder: Path, splits: Mapping[str, Rows]) -> Path:
    """A parquet for each split, as pandas writes it."""
    import pandas

    folder.mkdir(parents=True)
    for name, rows in splits.items():
        pandas.DataFrame({column: list(values) for column, values in rows.items()}).to_parquet(
            folder / f"{name}.parquet"
        )
    return folder


def opened(location: Path | str, **settings: Any) -> OwnData | Refused:
    """A user's own data as training opens them."""
    found: OwnData | Refused = refused(lambda: open_own(DataSettings(dir=str(location), **settings)))
    return found


def classes_of(data: OwnData) -> dict[str, list[str | None]]:
    """Every row's class by name."""
    names = data.task.class_names
    return {
        split: [names[number] if number >= 0 else None for number in numbers.tolist()]
        for split, numbers in data.numbers.items()
    }


def prepared(data: OwnData, *modalities: str, screen: Any = None) -> dict[str, Split] | Refused:
    """What training would read, where modalities need no processor."""
    try:
        views = [make_view(data, modality, None, "model") for modality in modalities]
        return open_views(data, views, group=0, limit=None, split="protocol", screen=screen or Screen(True),
                          max_broken=data.max_broken)  # fmt: skip
    except MstdistillError as error:
        return one_line(error)


def looked(location: Any, **settings: Any) -> bool | Refused:
    """Whether `check` calls data usable."""
    try:
        report = check(location, **settings)
    except MstdistillError as error:
        return one_line(error)
    assert str(report)
    return report.usable


def agree(location: Path, modality: str, **settings: Any) -> dict[str, Split] | Refused:
    """Data of one modality as training has them, which `check` must call usable, and nothing else."""
    settings["columns"] = {modality: modality}
    data = opened(location, **settings)
    found = prepared(data, modality) if isinstance(data, OwnData) else data
    said = looked(location, **settings)
    if isinstance(data, Refused):
        assert isinstance(said, Refused)
        assert said.line == data.line
    else:
        assert said is (not isinstance(found, Refused)), (said, found)
    return found


def everything(splits: Mapping[str, Split], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A modality's values over all splits, and the labels."""
    parts = [split.fetch(np.arange(len(split)), [name]) for split in splits.values()]
    return (np.concatenate([inputs[name].numpy() for inputs, _ in parts]),
            np.concatenate([label.numpy() for _, label in parts]))  # fmt: skip
