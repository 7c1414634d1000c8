"""Data sets in Python: any `torch.utils.data.Dataset` whose items are mappings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ...errors import DataError, nearest


class DatasetSplit:
    """Any `torch.utils.data.Dataset` whose items are mappings of modality names, and `label`, to tensors or numbers.

    Raises:
        DataError: an item isn't such a mapping.
    """

    def __init__(self, dataset: Any, label: str = "label") -> None:
        self.dataset, self.label = dataset, label
        if len(dataset) == 0:
            raise DataError("the data set is empty")
        first = dataset[0]
        if not isinstance(first, Mapping) or label not in first:
            found = sorted(first) if isinstance(first, Mapping) else type(first).__name__
            raise DataError(f"each item must be a mapping of modalities and {label!r}; found {found}")
        probe = np.unique(np.linspace(0, len(dataset) - 1, 16).astype(int))
        digests = [self._digest(probe), self._digest(probe)]
        self.deterministic = digests[0] == digests[1]
        self.fingerprint = digests[0]

    def _digest(self, probe: np.ndarray) -> str:
        digest = hashlib.sha256(str(len(self.dataset)).encode())
        for i in probe:
            for name, value in sorted(self.dataset[int(i)].items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(torch.as_tensor(value).numpy()).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        items = [self.dataset[int(i)] for i in index]
        for name in modalities:
            if name not in items[0]:
                raise DataError(f"the data have no modality {name!r}; {nearest(name, set(items[0]) - {self.label})}")
        try:
            inputs = {name: default_collate([torch.as_tensor(item[name]) for item in items]) for name in modalities}
        except RuntimeError as error:
            raise DataError(
                f"instances {list(index[:4])}...: modality lengths differ within a batch: {error}"
            ) from None
        return inputs, torch.as_tensor(default_collate([torch.as_tensor(item[self.label]) for item in items]))
