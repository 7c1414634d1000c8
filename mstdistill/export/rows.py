"""Rows that an artefact is calibrated on and tried on: a split's, or random ones where there is no data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.huggingface import HuggingFaceNet
from ..data.decode.processors import Port
from ..data.present import presence
from ..data.split import Split
from ..errors import ConfigError
from .intake import Intake

# Rows that a batch has at most, and what their inputs may weigh: dense logits are sixteen times as large.
BATCH, _BYTES = 32, 8e6


class Rows(Protocol):
    """Instances of one view, in a fixed order.

    Attributes:
        random: whether nobody measured them.
    """

    random: bool

    def __len__(self) -> int: ...

    def take(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Inputs [B, ...] and labels [B] or [B, H, W] of these positions; None: there are no labels."""
        ...


class SplitRows:
    """A split's rows, those that lack the student's modality left out.

    Args:
        view: the tensor of a batch that the student takes.
        most: rows at most, evenly spread; None: all.
    """

    random = False

    def __init__(self, split: Split, view: str, most: int | None = None) -> None:
        self.split, self.view = split, view
        there = presence(split).get(view)
        known = np.arange(len(split)) if there is None else np.flatnonzero(there)
        spread = np.linspace(0, max(len(known) - 1, 0), min(most or len(known), len(known))).round()
        self.index = known[np.unique(spread.astype(np.int64))]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See `Rows`."""
        inputs, label = self.split.fetch(self.index[start:stop], [self.view])
        return inputs[self.view], label


class RandomRows:
    """Random numbers of a shape, pixels, or tokens; the same for the same seed."""

    random = True

    def __init__(
        self, module: nn.Module, shape: tuple[int, ...], intake: Intake | None = None, count: int = 32, seed: int = 0
    ) -> None:
        self.shape, self.intake, self.count, self.seed = shape, intake, count, seed
        port = module.ports[0] if isinstance(module, HuggingFaceNet) else None
        self.port: Port | None = port if port is not None and port.kind != "array" else None
        self.words = _words(module) if self.port is not None and self.port.kind == "text" else 0

    def __len__(self) -> int:
        return self.count

    def take(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See `Rows`."""
        return torch.stack([self._one(i) for i in range(start, min(stop, self.count))]), None

    def _one(self, number: int) -> Tensor:
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        if self.port is None:
            return torch.rand(self.shape, generator=g)
        view = self.port.sample(1)[0]
        if self.port.kind == "text":
            view[self.port.names.index("input_ids")] = torch.randint(self.words, view.shape[1:], generator=g)
            return view
        if self.intake is not None:
            return self.intake.view(torch.randint(256, (1, *view.shape), generator=g))[0]
        return torch.rand(view.shape, generator=g)


def _words(module: Any) -> int:
    return int(module.model.get_input_embeddings().num_embeddings)


def input_shape(module: nn.Module, config: dict[str, Any]) -> tuple[int, ...]:
    """The shape that a student's config states.

    Raises:
        ConfigError: it states none that is fixed.
    """
    shape = tuple(config.get("input_shape") or ())
    if isinstance(module, HuggingFaceNet) and module.ports[0].kind != "array":
        return tuple(module.ports[0].shape)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ConfigError("the shape of the student's input isn't known: give data (train=, validation= or test=), or "
                          "input_shape in its config")  # fmt: skip
    return shape


def batches(rows: Rows) -> Iterator[tuple[Tensor, Tensor | None]]:
    """All rows in batches that memory holds."""
    size = batch_of(rows)
    for start in range(0, len(rows), size):
        yield rows.take(start, min(start + size, len(rows)))


def batch_of(rows: Rows, most: int = BATCH) -> int:
    """Rows of a batch: fewer where they are large."""
    one, _ = rows.take(0, 1)
    return max(1, min(most, int(_BYTES // (one.numel() * one.element_size()))))
