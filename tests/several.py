"""A toy task of several classes at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Several:
    """Toy instances with 0, 1 or 2 of three classes each, and some entries that nobody knows."""

    deterministic = True

    def __init__(self, count: int, seed: int, unknown: float = 0.0, bare: float = 0.0) -> None:
        draw = np.random.default_rng(seed)
        self.x = {
            name: draw.standard_normal((count, width)).astype(np.float32) for name, width in (("m1", 6), ("m2", 5))
        }
        self.label = np.stack([self.x["m1"][:, 0] > 0.3, self.x["m2"][:, 0] > 0.5,
                               self.x["m1"][:, 1] + self.x["m2"][:, 1] > 0], axis=1).astype(np.int64)  # fmt: skip
        self.label[draw.random((count, 3)) < unknown] = -1
        self.label[draw.random(count) < bare] = -1
        self.fingerprint = hashlib.sha256(self.label.tobytes() + self.x["m1"].tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.label)

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {name: torch.from_numpy(self.x[name][index]) for name in modalities}
        return inputs, torch.from_numpy(self.label[index])
