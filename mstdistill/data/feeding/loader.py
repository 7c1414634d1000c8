"""Batches of named modalities: a stateless plan says which instances each rank and micro-batch sees.

The order of an epoch depends on (seed, epoch) alone, so that a run resumes in the middle of an epoch without replaying
it, two methods with one seed see the same order, and W ranks with batch B see what one process with batch W*B sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ... import ranks
from ...errors import DataError
from ..instance import check_batch
from ..present import presence
from ..scale import Scale
from ..source import UNLABELLED, Labels
from ..split import OnDevice, Split, called, reader
from .batch import Batch, Partner
from .mixing import balanced_draw, mixed_order
from .pairs import Pairs
from .varying import Varying


@dataclass(frozen=True)
class MicroBatch:
    """One entry of a plan: which instances, and how they count."""

    index: np.ndarray
    real: int
    normaliser: float
    share: float
    closes_step: bool
    labelled: float | None = None
    partner: np.ndarray | None = None
    own: np.ndarray | None = None


class Loader:
    """Batches of a split for this rank.

    Args:
        split: the instances.
        modalities: which of them to read: what nobody looks at isn't read.
        batch_size: per rank and micro-batch.
        shuffle: a new order each epoch, from `seed`.
        accumulate: micro-batches per optimiser step.
        workers: background processes for data that take long to make; 0 suits prepared data.
        threads: fetch batches ahead in this process, into page-locked memory where there is a GPU; for prepared data,
            whose rows are copied without Python's lock.
        num_classes, ignore_index, several: what labels may be.
        vary: changes training batches on the device; see `varied`.
        pairs: with whom instances are mixed.
        labelled_share: of every optimiser step's instances, where some have no label: 1 for labelled ones alone, None
            for what chance gives.
        classes: [N] each instance's, -1 for none: an epoch then sees every class equally often; None: it doesn't.
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
        threads: int = 0,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        several: bool = False,
        classes: np.ndarray | None = None,
        labelled_share: float | None = None,
        vary: Varying | None = None,
        pairs: Pairs | None = None,
        name: str = "data",
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size}: must be at least 1")
        self.split, self.modalities, self.batch_size = split, list(modalities), batch_size
        self.shuffle, self.seed, self.accumulate, self.workers = shuffle, seed, accumulate, workers
        self.num_classes, self.ignore_index, self.name, self.threads = num_classes, ignore_index, name, threads
        self.vary, self.pairs = vary, pairs
        self.labelled: np.ndarray | None = getattr(split, "labelled", None)
        self.labelled_share = labelled_share if self.labelled is not None else None
        self.classes = classes
        self.labels = Labels(
            "several" if several else "classes",
            count=num_classes,
            ignore=ignore_index if self.labelled is None else UNLABELLED,
        )
        # of all modalities, whichever are read: teachers whose logits are known already have seen others
        self.present = presence(split)
        self.pinned = torch.cuda.is_available()
        # a protocol's check looks through a class each time: once is enough
        self._read, self._device = reader(split), split if isinstance(split, OnDevice) else None
        self._processes: tuple[_Queue, DataLoader[Batch | DataError]] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """The instances in this epoch's order."""
        count = len(self.split)
        if not self.shuffle:
            return np.arange(count)
        step = self.batch_size * self.accumulate * ranks.world_size()
        if self.classes is not None and self.labelled is None:
            return balanced_draw(self.classes, count, self.seed, epoch * count)
        share = self.labelled_share
        if self.labelled is not None and self.classes is not None and share is None:
            share = float(self.labelled.mean())
        if self.labelled is not None and share is not None:
            return mixed_order(self.labelled, share, step, self.seed, epoch, self.classes)
        return np.random.default_rng([self.seed, epoch, 0x0D0E]).permutation(count)

    def varied(self, batch: Batch, epoch: int) -> Batch:
        """A batch on the device as a stage learns from it in this epoch: changed, where the recipe augments."""
        return batch if self.vary is None else self.vary(batch, epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return -(-len(self.split) // (self.batch_size * self.accumulate * ranks.world_size()))

    def plan(self, epoch: int) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches, one list per optimiser step."""
        world, rank = ranks.world_size(), ranks.rank()
        order = self.order(epoch)
        wide = self.batch_size * world
        partner, own = (None, None) if self.pairs is None else self.pairs.of(len(self.split), epoch, self._told())
        for start in range(0, len(order), wide * self.accumulate):
            step = order[start : start + wide * self.accumulate]
            parts = [step[i : i + wide] for i in range(0, len(step), wide)]
            micro = []
            labelled = None if self.labelled is None else float(self.labelled[step].sum()) / world
            for number, part in enumerate(parts):
                mine = part[ranks.share_of(len(part), world, rank)]
                # no process may be left out of a step; a row that doesn't count keeps it in
                padding = part[: len(mine) == 0]
                index = np.concatenate([mine, padding])
                micro.append(
                    MicroBatch(
                        index=index,
                        real=len(mine),
                        normaliser=len(step) / world,
                        share=len(part) / len(step),
                        closes_step=number == len(parts) - 1,
                        labelled=labelled,
                        partner=None if partner is None else partner[index],
                        own=None if own is None else own[index],
                    )
                )
            yield micro

    def _told(self) -> list[np.ndarray]:
        """[N] bool each, in what instances differ that aren't to be mixed with each other."""
        labelled = [] if self.labelled is None else [self.labelled]
        return [*labelled, *(self.present[name] for name in sorted(self.present))]

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch on the CPU, from an optimiser step on."""
        plan = [micro for i, step in enumerate(self.plan(epoch)) if i >= start_step for micro in step]
        if self.workers:
            yield from self._from_processes(plan)
        elif self.threads and self._device is None:
            yield from self._from_threads(plan)
        else:
            for micro in plan:
                yield self._fetch(micro)

    def _from_processes(self, plan: list[MicroBatch]) -> Iterator[Batch]:
        """By background processes, which stay for the next epoch."""
        if self._processes is None:
            queue = _Queue()
            # of a copy: a circle would be left to the garbage collection, which closes the pipes before the processes
            # are told to end; each is then waited for
            fetching = _Fetching(copy(self))
            loader = DataLoader(
                fetching, sampler=queue, batch_size=None, num_workers=self.workers, persistent_workers=True,
                pin_memory=self.pinned, generator=torch.Generator(),
            )  # fmt: skip
            self._processes = queue, loader
        queue, loader = self._processes
        queue.plan = plan
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def _from_threads(self, plan: list[MicroBatch]) -> Iterator[Batch]:
        """By threads, a few batches ahead."""
        queue = iter(plan)
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.threads, "loader") as pool:
            try:
                for micro in islice(queue, 2 * self.threads):
                    ahead.append(pool.submit(self._fetch_pinned, micro))
                while ahead:
                    batch = ahead.popleft().result()
                    for micro in islice(queue, 1):
                        ahead.append(pool.submit(self._fetch_pinned, micro))
                    yield batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_pinned(self, micro: MicroBatch) -> Batch:
        batch = self._fetch(micro)
        return batch.pin_memory() if self.pinned else batch

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
        inputs, label, index = self._rows(micro.index)
        partner = None
        if micro.partner is not None and micro.own is not None:
            partner = Partner(*self._rows(micro.partner), torch.from_numpy(micro.own).to(index.device))
        scales: Mapping[str, Scale] = getattr(self.split, "scales", {})
        weight = torch.ones(len(index), device=index.device)
        weight[micro.real :] = 0.0
        present = {name: torch.from_numpy(values[micro.index]).to(index.device) for name, values in
                   self.present.items()}  # fmt: skip
        return Batch(inputs, label, index, weight, micro.normaliser, micro.share, micro.closes_step, scales,
                     micro.labelled, present, partner=partner)  # fmt: skip

    def _rows(self, positions: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Inputs, labels and positions of these instances, where the split lies."""
        index = torch.from_numpy(np.ascontiguousarray(positions))
        if self._device is not None:  # checked on its way there; the positions travel once
            index = index.to(self._device.device, non_blocking=True)
            return *self._device.pick(index, self.modalities), index
        inputs, label = self._read(positions, self.modalities)
        label = label.to(torch.int64)
        self._check(inputs, label, positions)
        return inputs, label, index

    def _check(self, inputs: Mapping[str, Tensor], label: Tensor, index: np.ndarray) -> None:
        """Raises DataError for NaN or Inf in the data and for labels out of range."""
        try:
            check_batch(inputs, label, self.labels, lambda row: called(self.split, int(index[row])))
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None


class _Queue(torch.utils.data.Sampler[MicroBatch]):
    """The micro-batches of the coming epoch, for background processes that outlive it."""

    def __init__(self) -> None:
        self.plan: list[MicroBatch] = []

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


class _Fetching(torch.utils.data.Dataset[Batch | DataError]):
    """A loader's fetch, as a data set whose positions are micro-batches."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, micro: MicroBatch) -> Batch | DataError:
        try:
            return self.loader._fetch(micro)
        except DataError as error:  # raised here, torch would wrap it in a traceback
            return error
