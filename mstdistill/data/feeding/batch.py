"""A micro-batch: named modalities, labels, and how its instances count in the optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ... import ranks
from ..scale import Scale
from ..source import UNLABELLED


@dataclass
class Batch:
    """One rank's micro-batch.

    Attributes:
        inputs: modality -> [B, ...].
        label: [B] or [B, H, W] int64; of several classes at once [B, C].
        index: [B] int64, positions in the split.
        weight: [B] float, 1 for an instance, 0 for the one row of a rank that has no instance of this micro-batch.
        normaliser: instances in the optimiser step over all ranks and micro-batches, divided by the ranks; a sum of
            weighted losses divided by it averages, over DDP's mean of the ranks, to the mean over the global batch.
        share: this micro-batch's part of the optimiser step's instances.
        closes_step: whether the optimiser steps after it.
        labelled: as `normaliser`, of the labelled instances alone; None: all of them are labelled.
        present: modality -> [B] bool, whether an instance has it, of those that some instances of the split lack; where
            it isn't there, `inputs` hold zeros.
        scales: how modalities that are as stored become what networks take; `to` applies them, where the batch goes.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    index: Tensor
    weight: Tensor
    normaliser: float
    share: float = 1.0
    closes_step: bool = True
    scales: Mapping[str, Scale] = field(default_factory=dict)
    labelled: float | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def instances(self) -> float:
        """Instances of this micro-batch over all ranks, padding left out."""
        return self.normaliser * ranks.world_size() * self.share

    def scale(self, dtype: torch.dtype) -> Tensor:
        """[B] what each instance counts in the mean over the global batch."""
        return self.weight.to(dtype) / self.normaliser

    def task_scale(self, dtype: torch.dtype) -> Tensor:
        """[B] what each instance counts in the mean over the labelled ones of the global batch; 0 without a label."""
        if self.labelled is None:
            return self.scale(dtype)
        known = self.label != UNLABELLED
        known = known.any(dim=1) if known.dim() == 2 else known  # of several classes at once: any
        return self.weight.to(dtype) * known.to(dtype) / max(self.labelled, 1e-12)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the global batch of values [B]."""
        return (values * self.weight.to(values.dtype)).sum() / self.normaliser

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, as networks take it: bytes and half precision travel, float32 is made there."""

        def move(x: Tensor) -> Tensor:
            return x if x.device == device else x.to(device, non_blocking=True)

        inputs = {name: self.scales[name](move(x)) if name in self.scales else move(x)
                  for name, x in self.inputs.items()}  # fmt: skip
        return Batch(inputs, move(self.label), move(self.index), move(self.weight), self.normaliser, self.share,
                     self.closes_step, labelled=self.labelled,
                     present={name: move(x) for name, x in self.present.items()})  # fmt: skip

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it while it computes."""

        def pin(x: Tensor) -> Tensor:
            return x if x.device.type != "cpu" else x.pin_memory()

        return replace(self, inputs={name: pin(x) for name, x in self.inputs.items()}, label=pin(self.label),
                       index=pin(self.index), weight=pin(self.weight),
                       present={name: pin(x) for name, x in self.present.items()})  # fmt: skip
