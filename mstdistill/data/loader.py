"""Batches of named modalities: a stateless plan says which instances each rank and micro-batch sees.

The order of an epoch depends on (seed, epoch) alone, so that a run resumes in the middle of an epoch without replaying
it, two methods with one seed see the same order, and W ranks with batch B see what one process with batch W*B sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from .. import ranks
from ..errors import DataError, nearest


@dataclass
class Batch:
    """One rank's micro-batch.

    Attributes:
        inputs: modality -> [B, ...].
        label: [B] or [B, H, W] int64.
        index: [B] int64, positions in the split.
        weight: [B] float, 1 for an instance, 0 for padding that keeps the ranks' shapes equal.
        normaliser: instances in the optimiser step over all ranks and micro-batches, divided by the ranks; a sum of
            weighted losses divided by it averages, over DDP's mean of the ranks, to the mean over the global batch.
        share: this micro-batch's part of the optimiser step's instances.
        closes_step: whether the optimiser steps after it.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    index: Tensor
    weight: Tensor
    normaliser: float
    share: float = 1.0
    closes_step: bool = True

    @property
    def instances(self) -> float:
        """Instances of this micro-batch over all ranks, padding left out."""
        return self.normaliser * ranks.world_size() * self.share

    def scale(self, dtype: torch.dtype) -> Tensor:
        """[B] what each instance counts in the mean over the global batch."""
        return self.weight.to(dtype) / self.normaliser

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the global batch of values [B]."""
        return (values * self.weight.to(values.dtype)).sum() / self.normaliser

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        if self.label.device == device:
            return self

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return Batch(
            {name: move(x) for name, x in self.inputs.items()},
            move(self.label), move(self.index), move(self.weight),
            self.normaliser, self.share, self.closes_step,
        )  # fmt: skip


@runtime_checkable
class Split(Protocol):
    """Instances that can be fetched by position.

    Attributes:
        fingerprint: a hash of the contents.
        deterministic: whether an instance is the same at each reading (no augmentation).
    """

    fingerprint: str
    deterministic: bool

    def __len__(self) -> int: ...

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Modalities and labels of these instances."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A split that lies on a device already, checked and with int64 labels.

    Attributes:
        device: where.
    """

    device: torch.device

    def pick(self, rows: Tensor, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The instances at these positions [B] on the device."""
        ...


class Subset:
    """Some instances of a split, renumbered from 0."""

    def __init__(self, split: Split, index: np.ndarray) -> None:
        self.split, self.index = split, np.asarray(index, dtype=np.int64)
        self.deterministic = split.deterministic
        digest = hashlib.sha256(split.fingerprint.encode() + self.index.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        return self.split.fetch(self.index[index], modalities)


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


@dataclass(frozen=True)
class MicroBatch:
    """One entry of a plan: which instances, and how they count."""

    index: np.ndarray
    real: int
    normaliser: float
    share: float
    closes_step: bool


class Loader:
    """Batches of a split for this rank.

    Args:
        split: the instances.
        modalities: which of them to read: what nobody looks at isn't read.
        batch_size: per rank and micro-batch.
        shuffle: a new order each epoch, from `seed`.
        accumulate: micro-batches per optimiser step.
        workers: background processes for data that take long to make; 0 suits prepared data.
        num_classes, ignore_index: what labels may be.
    """

    def __init__(
        self,
        split: Split,
        modalities: Sequence[str],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        accumulate: int = 1,
        workers: int = 0,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        name: str = "data",
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size}: must be at least 1")
        self.split, self.modalities, self.batch_size = split, list(modalities), batch_size
        self.shuffle, self.seed, self.accumulate, self.workers = shuffle, seed, accumulate, workers
        self.num_classes, self.ignore_index, self.name = num_classes, ignore_index, name

    def order(self, epoch: int) -> np.ndarray:
        """The instances in this epoch's order."""
        count = len(self.split)
        if not self.shuffle:
            return np.arange(count)
        return np.random.default_rng([self.seed, epoch, 0x0D0E]).permutation(count)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return -(-len(self.split) // (self.batch_size * self.accumulate * ranks.world_size()))

    def plan(self, epoch: int) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches, one list per optimiser step."""
        world, rank = ranks.world_size(), ranks.rank()
        order = self.order(epoch)
        wide = self.batch_size * world
        for start in range(0, len(order), wide * self.accumulate):
            step = order[start : start + wide * self.accumulate]
            parts = [step[i : i + wide] for i in range(0, len(step), wide)]
            micro = []
            for number, part in enumerate(parts):
                rows = -(-len(part) // world)
                mine = part[rank * rows : (rank + 1) * rows]
                padding = np.resize(part, rows - len(mine))
                micro.append(
                    MicroBatch(
                        index=np.concatenate([mine, padding]),
                        real=len(mine),
                        normaliser=len(step) / world,
                        share=len(part) / len(step),
                        closes_step=number == len(parts) - 1,
                    )
                )
            yield micro

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch on the CPU, from an optimiser step on."""
        plan = [micro for i, step in enumerate(self.plan(epoch)) if i >= start_step for micro in step]
        if self.workers == 0:
            for micro in plan:
                yield self._fetch(micro)
            return
        source = _Planned(self, plan)
        loader = DataLoader(source, batch_size=None, num_workers=self.workers, generator=torch.Generator())
        yield from loader

    def first(self, rows: int | None = None) -> Batch:
        """The first instances in stored order (a batch of them unless told), for dry runs."""
        index = np.arange(min(rows or self.batch_size, len(self.split)))
        return self._fetch(MicroBatch(index, len(index), float(len(index)), 1.0, True))

    def rows(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches over instances start..stop in stored order, this rank alone."""
        for begin in range(start, stop, self.batch_size):
            index = np.arange(begin, min(begin + self.batch_size, stop))
            yield self._fetch(MicroBatch(index, len(index), float(len(index)), 1.0, True))

    def _fetch(self, micro: MicroBatch) -> Batch:
        index = torch.from_numpy(np.ascontiguousarray(micro.index))
        if isinstance(self.split, OnDevice):  # checked on its way there; the positions travel once
            index = index.to(self.split.device, non_blocking=True)
            inputs, label = self.split.pick(index, self.modalities)
        else:
            inputs, label = self.split.fetch(micro.index, self.modalities)
            label = label.to(torch.int64)
            self._check(inputs, label, micro.index)
        weight = torch.ones(len(index), device=index.device)
        weight[micro.real :] = 0.0
        return Batch(inputs, label, index, weight, micro.normaliser, micro.share, micro.closes_step)

    def _check(self, inputs: Mapping[str, Tensor], label: Tensor, index: np.ndarray) -> None:
        """Raises DataError for NaN or Inf in the data and for labels out of range."""
        for modality, values in inputs.items():
            if values.is_floating_point() and not bool(torch.isfinite(values.sum())):
                finite = torch.isfinite(values.flatten(1)).all(dim=1)
                if not bool(finite.all()):
                    row = int(index[int((~finite).nonzero()[0])])
                    raise DataError(
                        f"{self.name}: NaN or Inf in modality {modality!r} of instance {row}; mend or drop it, then "
                        "prepare the data again"
                    )
        if self.num_classes is None:
            return
        wrong = (label < 0) | (label >= self.num_classes)
        if self.ignore_index is not None:
            wrong &= label != self.ignore_index
        if bool(wrong.any()):
            row = int(index[int(wrong.flatten(1).any(dim=1).nonzero()[0] if wrong.dim() > 1 else wrong.nonzero()[0])])
            raise DataError(
                f"{self.name}: label {int(label[wrong][0])} of instance {row} is out of range: the task has "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}"
            )


class _Planned(torch.utils.data.Dataset[Batch]):
    """A plan's micro-batches as a data set, for background workers."""

    def __init__(self, loader: Loader, plan: list[MicroBatch]) -> None:
        self.loader, self.plan = loader, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: int) -> Batch:
        return self.loader._fetch(self.plan[i])
