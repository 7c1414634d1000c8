"""A split held on the training device: for a small student, copying batches costs more than learning from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..present import presence
from ..scale import Scale
from ..split import Split
from .loader import Loader


class ResidentSplit:
    """The same instances as a split, each modality read once, checked and kept on a device.

    Args:
        loader: reads and checks the split; which modalities and how many rows at a time.
        device: where the tensors stay.
    """

    deterministic = True

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.split: Split = loader.split
        self.device, self.fingerprint = device, loader.split.fingerprint
        self.scales: Mapping[str, Scale] = getattr(loader.split, "scales", {})
        self.labelled: np.ndarray | None = getattr(loader.split, "labelled", None)
        self.present: Mapping[str, np.ndarray] = presence(loader.split)
        count, at = len(loader.split), 0
        first = loader.first(1)
        self.inputs = {name: x.new_empty(count, *x.shape[1:], device=device) for name, x in first.inputs.items()}
        self.label = first.label.new_empty(count, *first.label.shape[1:], device=device)
        for batch in loader.rows(0, count):
            for name, values in batch.inputs.items():
                self.inputs[name][at : at + len(values)] = values
            self.label[at : at + len(batch.label)] = batch.label
            at += len(batch.label)

    def __len__(self) -> int:
        return len(self.split)

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        inputs, label = self.pick(torch.from_numpy(np.ascontiguousarray(index)).to(self.device), modalities)
        return {name: self.scales[name](x) if name in self.scales else x for name, x in inputs.items()}, label

    def pick(self, rows: Tensor, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The instances at these positions [B], on the device, as stored."""
        return {name: self.inputs[name][rows] for name in modalities}, self.label[rows]


def resident_bytes(loader: Loader) -> int:
    """What the loader's split would take on a device."""
    first = loader.first(1)
    return len(loader.split) * sum(x.nbytes for x in (*first.inputs.values(), first.label))
