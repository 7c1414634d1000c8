"""AV-MNIST as the paper's authors preprocessed it: `avmnist/{image,audio}/{train,test}_data.npy` with their labels.

Images [N, 784] or [N, 28, 28], spectrograms [N, 112, 112], labels `avmnist/{train,test}_labels.npy` [N]. Training rows
stand before test rows. Scaling is the data protocol's: every image and every spectrogram alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...decode.spectra import min_max
from ...prepared.plan import Column, Item, Plan, Row
from ...task import Task
from ..files import sha256
from .arrays import ORDER, folder_below, labels_of, mapped, rows_of, same_rows

PARTS = {"train": 0, "test": 2}
_NAMES = tuple(f"{kind}/{part}_data.npy" for kind in ("image", "audio") for part in PARTS)
_LABELS = tuple(f"{part}_labels.npy" for part in PARTS)


def arrays_below(root: Path) -> Path | None:
    """The folder of the arrays; None: there are none."""
    return folder_below(root, (*_NAMES, *_LABELS))


def plan_of(folder: Path, task: Task, dtype: str) -> Plan:
    """How the authors' arrays become prepared data, rows in their order.

    Args:
        dtype: how features are stored.

    Raises:
        DataError: missing files, or shapes, lengths or labels that don't fit; the message names the file.
    """
    items = []
    for part, number in PARTS.items():
        image, audio = (folder / kind / f"{part}_data.npy" for kind in ("image", "audio"))
        count = same_rows((image, audio), (rows_of(image, (784,), (28, 28)), rows_of(audio, (112, 112))))
        classes = labels_of(folder / f"{part}_labels.npy", count, image, task.num_classes)
        items += [Item(f"{part} row {i}", (part, i), classes[i], number) for i in range(count)]
    return Plan(
        task=task.name,
        version=task.version,
        columns={"image": Column((1, 28, 28), dtype), "audio": Column((1, 112, 112), dtype)},
        items=items,
        read=ReadRow(folder),
        settings={"released": True, "dtype": dtype},
        order=ORDER,
        card={
            "title": task.title,
            "classes": list(task.class_names),
            "released": "the authors' preprocessed arrays",
            "sources": {
                "publisher": "MNIST (CC BY-SA 3.0) and Free Spoken Digits (CC BY-SA 4.0), preprocessed by the paper's "
                "authors",
                "sha256": {name: sha256(folder / name) for name in (*_NAMES, *_LABELS)},
            },
        },
    )


@dataclass(frozen=True)
class ReadRow:
    """From a part and a row's number to `image` [1, 28, 28] and `audio` [1, 112, 112], each scaled to [0, 1]; a
    constant one becomes 0, and the card counts it."""

    folder: Path

    def __call__(self, source: tuple[str, int]) -> Row:
        part, row = source
        values = {}
        for kind, side in (("image", 28), ("audio", 112)):
            found = np.array(mapped(self.folder / kind / f"{part}_data.npy")[row])
            values[kind], _ = min_max(found.reshape(1, side, side))
        return values
