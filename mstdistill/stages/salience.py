"""MGDFR's second stage: which channels of a teacher's feature its agreement with the student rests on.

    s_c = mean over instances and repeats of MSE(z_t with channel c permuted over the batch, z_s),  scaled to [0, 1]

Nothing is trained. The variants of a batch run together: at the feature the batch grows by its permuted copies, and
what follows treats them as one larger batch. A network that fails a check of that on the first batch runs once a
variant.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch
from torch import Tensor

from .. import ranks
from ..data.feeding.batch import Batch
from ..engine.seeding import named_seed
from ..experiment import Experiment
from ..files import write_tensors, write_text
from ..teachers.feature import Feature, changed, channel_axis
from ..teachers.tap import Teacher, call

NAME = "salience"
# numbers in a grown feature
LARGEST = 2**26

Variants = tuple[Tensor, Tensor]  # [V] channels, [V, B] the order of the batch in each


def permuted(x: Tensor, variants: Variants, axis: int) -> Tensor:
    """[V, B, ...] copies of a feature [B, ...], in each one channel in another order of the batch."""
    channels, orders = variants
    grown = x.unsqueeze(0).repeat(len(channels), *(1,) * x.dim())
    rows = torch.arange(len(x), device=x.device)
    which = torch.arange(len(channels), device=x.device).unsqueeze(1)
    grown.movedim(axis + 1, 2)[which, rows, channels.unsqueeze(1)] = x.movedim(axis, 1)[orders, channels.unsqueeze(1)]
    return grown


class Salience:
    """Measures a feature of a teacher against the experiment's student; both in eval mode."""

    def __init__(self, experiment: Experiment, teacher: Teacher, place: Feature, repeats: int) -> None:
        self.experiment, self.teacher, self.place, self.repeats = experiment, teacher, place, repeats
        self.grows: bool | None = None

    def logits(self, batch: Batch, variants: Variants) -> Tensor:
        """[V, B, C, ...] the teacher's logits of these variants."""
        if self.grows is None:
            self.grows = self._can_grow(batch, variants)
        if self.grows:
            return self._run(batch, variants)
        return torch.cat([self._run(batch, (variants[0][v : v + 1], variants[1][v : v + 1]))
                          for v in range(len(variants[0]))])  # fmt: skip

    def _run(self, batch: Batch, variants: Variants) -> Tensor:
        module, count = self.teacher.module, len(variants[0])

        def change(x: Tensor) -> Tensor:
            return permuted(x, variants, channel_axis(module, self.place, x)).flatten(0, 1)

        with self.experiment.accelerator.autocast(), changed(module, [(self.place, change)], self.teacher.name):
            logits = call(module, batch.inputs, self.teacher.modalities)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.unflatten(0, (count, len(batch.index)))

    def _can_grow(self, batch: Batch, variants: Variants) -> bool:
        two = variants[0][:2], variants[1][:2]
        apart = torch.cat([self._run(batch, (two[0][v : v + 1], two[1][v : v + 1])) for v in range(len(two[0]))])
        try:
            together = self._run(batch, two)
        except (RuntimeError, ValueError, IndexError):  # what follows the feature counts instances elsewhere
            return False
        scale = float(apart.abs().max().clamp(min=1.0))
        return bool((together - apart).abs().max() <= (1e-4 if apart.dtype == torch.float64 else 2e-2) * scale)

    def sums(self, batch: Batch, seed: int) -> Tensor:
        """[C + 1] each channel's summed differences over the batch's instances and repeats, and how many there were."""
        experiment, device = self.experiment, batch.weight.device
        size, channels = self._size(batch)
        rows = len(batch.index)
        draws = torch.rand(self.repeats, rows, generator=torch.Generator().manual_seed(seed))
        orders = draws.argsort(dim=1).to(device)
        with experiment.accelerator.autocast():
            student = call(experiment.student, batch.inputs, (experiment.target,))
        found = torch.zeros(channels + 1, dtype=torch.float64, device=device)
        # each process a part of the permutations, of all processes' instances
        mine = ranks.share_of(channels * self.repeats, ranks.world_size(), ranks.rank())
        cells = torch.arange(channels * self.repeats, device=device)[mine]
        for part in cells.split(max(LARGEST // size, 1)):
            which = part % channels
            logits = self.logits(batch, (which, orders[part // channels]))
            apart = (logits - student.to(logits.dtype)).square().flatten(2).mean(dim=2)
            found.index_add_(0, which, (apart.to(torch.float64) * batch.weight).sum(dim=1))
        found[-1] = batch.weight.sum() * self.repeats / ranks.world_size()
        return found

    def _size(self, batch: Batch) -> tuple[int, int]:
        """Numbers in the feature, and its channels."""
        seen: list[tuple[int, int]] = []

        def look(x: Tensor) -> Tensor:
            seen.append((x.numel(), x.shape[channel_axis(self.teacher.module, self.place, x)]))
            return x

        with changed(self.teacher.module, [(self.place, look)], self.teacher.name):
            call(self.teacher.module, batch.inputs, self.teacher.modalities)
        return seen[0]


@torch.no_grad()
def run(
    experiment: Experiment, teacher: Teacher, place: Feature, repeats: int = 10, instances: int | None = None
) -> Tensor:
    """[C] salience of the channels of a teacher's feature, in [0, 1], or the result of an earlier run.

    Args:
        instances: look at about so many; None: at all.
    """
    found = experiment.result(NAME)
    if found is not None:
        return found.state["salience"]
    started = time.monotonic()
    measure = Salience(experiment, teacher, place, repeats)
    experiment.student.eval()
    loader = experiment.feeds.loader("train", sorted({experiment.target, *teacher.modalities}), shuffle=True)
    steps = loader.steps_per_epoch
    if instances is not None:
        steps = min(steps, -(-instances // (loader.batch_size * ranks.world_size())))
    total: Tensor | None = None
    with experiment.screen.task(NAME, steps) as bar:
        for number, batch in zip(range(steps), loader.epoch(0), strict=False):
            seed = named_seed(experiment.recipe.seed, NAME, number, 0)
            sums = measure.sums(_whole(batch.to(experiment.accelerator.device)), seed)
            total = sums if total is None else total + sums
            bar.advance()
    assert total is not None
    total = ranks.total(total)
    values = (total[:-1] / total[-1].clamp(min=1)).cpu()
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-300)
    _keep(experiment, values, time.monotonic() - started)
    return values


def _whole(batch: Batch) -> Batch:
    """The micro-batch of all processes: a permutation is over all of its instances."""
    if ranks.world_size() == 1:
        return batch
    count = round(batch.instances)
    return replace(
        batch,
        inputs={name: ranks.rows_of_all(x, count) for name, x in batch.inputs.items()},
        label=ranks.rows_of_all(batch.label, count),
        index=ranks.rows_of_all(batch.index, count),
        weight=batch.weight.new_ones(count),
    )


def _keep(experiment: Experiment, values: Tensor, seconds: float) -> None:
    folder = experiment.folder / NAME
    if ranks.rank() == 0:
        write_tensors(folder / "result.safetensors", {NAME: values})
        facts = {"fingerprint": experiment.fingerprint, "seconds": round(seconds, 3), "best_epoch": -1, "history": []}
        write_text(folder / "result.json", json.dumps(facts, indent=1))
    ranks.wait()
