"""From a batch of training instances on the device to the changed one that a stage learns from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..augment.plan import Augmentation
from ..given_logits import are_logits
from .batch import Batch
from .said import mixed


@dataclass(frozen=True)
class Varying:
    """Changes batches.

    Attributes:
        augmentation: what is changed.
        views: in these alone; None: in all.
        repeated: an instance's changes begin anew after so many epochs; None: never.
        several: instances have several classes at once.
    """

    augmentation: Augmentation
    views: Collection[str] | None = None
    repeated: int | None = None
    several: bool = False

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The changed batch, which holds what it was made of."""
        epoch = epoch if self.repeated is None else epoch % self.repeated
        found = self._changed(batch.inputs, batch.index, batch.present, epoch)
        other = batch.partner
        if other is not None:  # both changed, each by its own numbers, then mixed, in every modality
            theirs = self._changed(other.inputs, other.index, batch.present, epoch)
            found = {name: self._mixture(name, x, theirs[name], other.own) for name, x in found.items()}
        return replace(batch, inputs=found, clean=batch.inputs, view=epoch)

    def _changed(
        self, inputs: Mapping[str, Tensor], index: Tensor, present: Mapping[str, Tensor], epoch: int
    ) -> dict[str, Tensor]:
        found = self.augmentation(inputs, index, epoch, self.views)
        for name in found.keys() & present.keys():  # what isn't there stays zeros
            there = present[name].view(-1, *(1,) * (found[name].dim() - 1))
            found[name] = found[name].masked_fill(~there, 0)
        return found

    def _mixture(self, name: str, x: Tensor, y: Tensor, own: Tensor) -> Tensor:
        own = own.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
        if are_logits(name):  # of a teacher that is nothing else: what it says is mixed as labels are
            return mixed(x, y, own, 1, self.several)
        return x * own + y * (1 - own)
