"""A split held on the training device: for a small student, copying batches costs more than learning from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .loader import Loader, Split


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
        parts: dict[str, list[Tensor]] = {name: [] for name in loader.modalities}
        labels: list[Tensor] = []
        for batch in loader.rows(0, len(loader.split)):
            for name, values in batch.inputs.items():
                parts[name].append(values.to(device))
            labels.append(batch.label.to(device))
        self.inputs = {name: torch.cat(values) for name, values in parts.items()}
        self.label = torch.cat(labels)

    def __len__(self) -> int:
        return len(self.split)

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(index)).to(self.device, non_blocking=True)
        return {name: self.inputs[name][rows] for name in modalities}, self.label[rows]


def resident_bytes(loader: Loader) -> int:
    """What the loader's split would take on a device."""
    first = loader.first(1)
    return len(loader.split) * sum(x.nbytes for x in (*first.inputs.values(), first.label))
