"""Training instances without a label: which ones they are, and labels hidden for an experiment.

An instance without a label has the class -1. The task's loss leaves it out, distillation doesn't.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .scale import Scale
from .source import UNLABELLED
from .split import Split, called, identities, reader

# Labels that are read at a time, and pixels of them.
_ROWS, _ENTRIES = 4096, 2**22


class LabelsHidden:
    """A split of which some instances hide their label.

    Args:
        split: the instances.
        known: [N] bool, whether an instance keeps its label.
        instead: what stands in a label's place, in each pixel of one that is a map.
    """

    def __init__(self, split: Split, known: np.ndarray, instead: int) -> None:
        self.split, self.known, self.instead = split, np.asarray(known, dtype=bool), instead
        self.deterministic = split.deterministic
        digest = hashlib.sha256(split.fingerprint.encode() + np.packbits(self.known).tobytes())
        self.fingerprint = digest.hexdigest()
        self._read = reader(split)

    def __len__(self) -> int:
        return len(self.split)

    def called_at(self, position: int) -> str:
        """See `split.called`."""
        return called(self.split, position)

    def identities(self) -> Sequence[str | None] | None:
        """See `split.identities`."""
        return identities(self.split)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """See `split.Stored`."""
        return getattr(self.split, "scales", {})

    @property
    def present(self) -> Mapping[str, np.ndarray]:
        """See `present.presence`."""
        return getattr(self.split, "present", {})

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """See `split.Split`."""
        inputs, label = self.split.fetch(index, modalities)
        return inputs, self._hidden(index, label)

    def stored(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """See `split.Stored`."""
        inputs, label = self._read(index, modalities)
        return inputs, self._hidden(index, label)

    def _hidden(self, index: np.ndarray, label: Tensor) -> Tensor:
        known = torch.from_numpy(self.known[index])
        return torch.where(known.view(-1, *(1,) * (label.dim() - 1)), label.to(torch.int64), self.instead)


class PartlyLabelled(LabelsHidden):
    """A split of which some instances count as unlabelled.

    Args:
        split: the instances.
        labelled: [N] bool, whether an instance's label may be used.

    Attributes:
        labelled: as given.
    """

    def __init__(self, split: Split, labelled: np.ndarray) -> None:
        super().__init__(split, labelled, UNLABELLED)
        self.labelled = self.known


def labels_of(split: Split) -> np.ndarray:
    """[N] classes of all instances, -1 for none, or [N, C] of several at once; nothing else of them is read.

    Raises:
        DataError: labels are maps, of which each pixel has or lacks a class of its own.
    """
    parts = []
    for start in range(0, len(split), _ROWS):
        _, label = reader(split)(np.arange(start, min(start + _ROWS, len(split))), ())
        if label.dim() > 2:
            raise DataError("labels are maps: pixels without a class take the task's ignored number, whole maps too")
        parts.append(label.to(torch.int64).numpy())
    return np.concatenate(parts)


def has_label(split: Split, ignore: int | None) -> np.ndarray:
    """[N] bool: which instances have a label, of a map in any of its pixels, of several classes at once in any of them.

    Args:
        ignore: a class that doesn't count.
    """
    read, parts = reader(split), []
    step = min(_ROWS, max(1, _ENTRIES // read(np.arange(1), ())[1].numel()))
    for start in range(0, len(split), step):
        _, label = read(np.arange(start, min(start + step, len(split))), ())
        parts.append(((label >= 0) & (label != ignore)).reshape(len(label), -1).any(dim=1).cpu().numpy())
    return np.concatenate(parts)


def hidden(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[N] bool: `share` of each class's labelled instances, at least one of each, drawn by the seed.

    A larger share holds all of a smaller one's.

    Args:
        label: [N] classes, -1 for none.
    """
    kept = np.zeros(len(label), dtype=bool)
    for number in np.unique(label[label >= 0]):
        rows = np.flatnonzero(label == number)
        order = np.random.default_rng([seed, int(number), 0x1ABE]).permutation(rows)
        kept[order[: max(1, round(share * len(rows)))]] = True
    return kept


def partly_labelled(split: Split, share: float | None, seed: int, num_classes: int, name: str) -> tuple[Split, str]:
    """A training split as it is learned from, and a line for people; the split itself where all of it is labelled.

    Args:
        share: of the labelled instances that keep their label; None: all do.

    Raises:
        DataError: nobody has a label, or a label is out of range.
    """
    label = labels_of(split)
    if label.ndim == 2:
        return _partly_several(split, label, share, seed, name)
    if label.size and int(label.max()) >= num_classes:
        row = int(label.argmax())
        raise DataError(f"{name}: label {int(label[row])} of {called(split, row)} is out of range: the task has "
                        f"{num_classes} classes, 0 to {num_classes - 1}")  # fmt: skip
    known = label >= 0
    if not known.any():
        raise DataError(f"{name}: no instance has a label; a task is learned from at least one a class")
    if share is not None and share < 1:
        known = hidden(label, share, seed)
    if known.all():
        return split, ""
    line = f"{name}: {int(known.sum()):,} of {len(label):,} instances are labelled"
    line += _nobody([number for number in range(num_classes) if not (label[known] == number).any()])
    return PartlyLabelled(split, known), line


def _partly_several(split: Split, label: np.ndarray, share: float | None, seed: int, name: str) -> tuple[Split, str]:
    """As `partly_labelled`, of labels of several classes at once [N, C]; an instance of which nothing is known is one
    without a label. A share is drawn from all alike."""
    known: np.ndarray = np.any(label >= 0, axis=1)
    if not known.any():
        raise DataError(f"{name}: no instance has a label; a task is learned from at least one a class")
    if share is not None and share < 1:
        known = hidden(np.where(known, 0, UNLABELLED), share, seed)
    if known.all():
        return split, ""
    line = f"{name}: {int(known.sum()):,} of {len(label):,} instances are labelled"
    return PartlyLabelled(split, known), line + _nobody(np.flatnonzero(~(label[known] == 1).any(axis=0)).tolist())


def _nobody(missing: Sequence[int]) -> str:
    if not missing:
        return ""
    some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return f"; warning: none of class {some}: the student can learn it from its teachers at best"
