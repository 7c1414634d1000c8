"""RAVDESS as the paper's authors preprocessed it: `RAVDESS_preprocessed_npy/{video,audio,label}_data.npy`.

Face crops [N, 15, 3, 224, 224] in BGR order and MFCCs [N, 15, 156], both unscaled, and labels [N]. The colours are put
into RGB order, which this task's videos have wherever they come from; the authors' checkpoints come to it by
`mstdistill import --bgr`. Scaling is the data protocol's: videos per channel over all rows, MFCCs each alone.
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

VIDEO, AUDIO, LABEL = "video_data.npy", "audio_data.npy", "label_data.npy"


def arrays_below(root: Path) -> Path | None:
    """The folder of the arrays; None: there are none."""
    return folder_below(root, (VIDEO, AUDIO, LABEL))


def plan_of(folder: Path, task: Task) -> Plan:
    """How the authors' arrays become prepared data, rows in their order.

    Raises:
        DataError: missing files, or shapes, lengths or labels that don't fit; the message names the file.
    """
    video, audio, label = (folder / name for name in (VIDEO, AUDIO, LABEL))
    shapes = {name: tuple(size or 0 for size in shape) for name, shape in task.modalities.items()}
    count = same_rows((video, audio), (rows_of(video, shapes["video"]), rows_of(audio, shapes["audio"])))
    classes = labels_of(label, count, video, task.num_classes)
    return Plan(
        task=task.name,
        version=task.version,
        columns={
            # bytes stay bytes; wider numbers that stand for colours fit into float32
            "video": Column(shapes["video"], "uint8" if mapped(video).dtype == np.uint8 else "float32", "channel", 1),
            "audio": Column(shapes["audio"], "float32"),
        },
        items=[Item(f"row {i}", i, classes[i]) for i in range(count)],
        read=ReadRow(video, audio),
        settings={"released": True},
        order=ORDER,
        card={
            "title": task.title,
            "classes": list(task.class_names),
            "released": "the authors' preprocessed arrays",
            "colours": "RGB, turned from the arrays' BGR",
            "sources": {
                "publisher": "RAVDESS (CC BY-NC-SA 4.0), preprocessed by the paper's authors",
                "sha256": {path.name: sha256(path) for path in (video, audio, label)},
            },
        },
    )


@dataclass(frozen=True)
class ReadRow:
    """From a row's number to `video` [15, 3, 224, 224] as stored, in RGB order, and `audio` [15, 156] in [0, 1]; a
    constant one becomes 0, and the card counts it."""

    video: Path
    audio: Path

    def __call__(self, row: int) -> Row:
        heard, _ = min_max(np.array(mapped(self.audio)[row : row + 1]))
        return {"video": np.ascontiguousarray(mapped(self.video)[row][:, ::-1]), "audio": heard[0]}
