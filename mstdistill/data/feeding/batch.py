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
class Partner:
    """What a batch's instances are mixed with.

    Attributes:
        inputs, label, index: as a batch's.
        own: [B] float32 the part of the batch's own instance in the mixture; the partner's is the rest.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    index: Tensor
    own: Tensor


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
        clean: the inputs before augmentation changed them; None: nothing was changed.
        view: the epoch by whose numbers they were changed.
        partner: what each instance is mixed with; None: they are not mixed.
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
    clean: Mapping[str, Tensor] | None = None
    view: int = 0
    partner: Partner | None = None

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

    def unvaried(self) -> Batch:
        """The instances as the data have them."""
        return self if self.clean is None else replace(self, inputs=dict(self.clean), clean=None, partner=None)

    def partners(self) -> Batch:
        """The instances that these are mixed with, as the data have them."""
        assert self.partner is not None
        inputs, label, index = self.partner.inputs, self.partner.label, self.partner.index
        return replace(self, inputs=inputs, label=label, index=index, clean=None, partner=None)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, as networks take it: bytes and half precision travel, float32 is made there."""

        def move(x: Tensor) -> Tensor:
            return x if x.device == device else x.to(device, non_blocking=True)

        def taken(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: self.scales[name](move(x)) if name in self.scales else move(x) for name, x in inputs.items()}

        other = self.partner
        if other is not None:
            other = Partner(taken(other.inputs), move(other.label), move(other.index), move(other.own))
        return Batch(taken(self.inputs), move(self.label), move(self.index), move(self.weight), self.normaliser,
                     self.share, self.closes_step, labelled=self.labelled, partner=other,
                     present={name: move(x) for name, x in self.present.items()})  # fmt: skip

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it while it computes."""

        def pin(x: Tensor) -> Tensor:
            return x if x.device.type != "cpu" else x.pin_memory()

        other = self.partner
        if other is not None:
            inputs = {name: pin(x) for name, x in other.inputs.items()}
            other = Partner(inputs, pin(other.label), pin(other.index), pin(other.own))
        return replace(self, inputs={name: pin(x) for name, x in self.inputs.items()}, label=pin(self.label),
                       index=pin(self.index), weight=pin(self.weight),
                       present={name: pin(x) for name, x in self.present.items()}, partner=other)  # fmt: skip
