"""From a batch of training instances on the device to the changed one that a stage learns from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor

from ..augment.plan import Augmentation
from .batch import Batch


@dataclass(frozen=True)
class Varying:
    """Changes batches.

    Attributes:
        augmentation: what is changed.
        views: in these alone; None: in all.
        repeated: an instance's changes begin anew after so many epochs; None: never.
    """

    augmentation: Augmentation
    views: Collection[str] | None = None
    repeated: int | None = None

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The changed batch, which holds what it was made of."""
        epoch = epoch if self.repeated is None else epoch % self.repeated
        found = self.augmentation(batch.inputs, batch.index, epoch, self.views)
        other = batch.partner
        if other is not None:  # both changed, each by its own numbers, then mixed, in every modality
            theirs = self.augmentation(other.inputs, other.index, epoch, self.views)
            found = {name: _mixture(x, theirs[name], other.own) for name, x in found.items()}
        return replace(batch, inputs=found, clean=batch.inputs, view=epoch)


def _mixture(x: Tensor, y: Tensor, own: Tensor) -> Tensor:
    own = own.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
    return x * own + y * (1 - own)
