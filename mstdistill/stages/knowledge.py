"""What frozen teachers say of a batch: logits and features, from tables computed once where they are constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import CacheSettings
from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..losses import mixed_logits
from ..teachers.feature import Change, Feature, changed, read
from ..teachers.tap import Teacher
from .constant_logits import LogitSource, constant_logits


class Knowledge:
    """Logits of teachers [B, M, C, ...] and features of the first of them, without gradient, over a split.

    Args:
        teachers: in eval mode.
        features: of the first teacher.
        logits: whether logits are wanted.
        changes: functions that features of the first teacher go through on the way, for each batch anew: then nothing
            is constant.

    Attributes:
        modalities: what a batch must hold for it: nothing when all comes from tables.
        about: one line for people.
    """

    def __init__(
        self,
        experiment: Experiment,
        teachers: Sequence[Teacher],
        features: Sequence[Feature] = (),
        *,
        logits: bool = True,
        split: str = "train",
        changes: Callable[[Batch], list[tuple[Feature, Change]]] | None = None,
    ) -> None:
        self.experiment, self.teachers, self.features, self.logits = experiment, list(teachers), list(features), logits
        self.changes = changes
        self.tables: list[LogitSource] = []
        self.modalities: tuple[str, ...] = tuple(sorted({m for t in teachers for m in t.modalities}))
        if changes is not None:
            self.about = "live: they depend on the batch"
            return
        tables = self._open_tables(split)
        self.about = "; ".join(table.about for table in tables)
        # one that doesn't fit means a live forward, which gives all the others too
        if not any(table.modalities for table in tables):
            self.tables, self.modalities = tables, ()

    def _open_tables(self, split: str) -> list[LogitSource]:
        experiment, first = self.experiment, self.teachers[0]
        modules = {f"teacher {teacher.name}": teacher.module for teacher in self.teachers}
        cache, tables = experiment.recipe.distill.cache, []
        names = "-".join(teacher.name for teacher in self.teachers)
        if self.logits:
            tables.append(constant_logits(
                experiment, f"{names}-{split}", self._forward_logits, self.modalities, split, modules, (names,), cache
            ))  # fmt: skip
        # half a table's precision is made for logits: features keep their own type
        double = any(p.dtype == torch.float64 for p in first.module.parameters())
        kind = "float64" if double else "float32"
        exact = CacheSettings(mode=cache.mode, dtype=kind, budget_gb=cache.budget_gb, resident_gb=cache.resident_gb)
        for number, feature in enumerate(self.features):
            tables.append(constant_logits(
                experiment, f"{first.name}-{split}-feature{number}", self._forward_feature(feature), first.modalities,
                split, {first.name: first.module}, (first.name, str(feature)), exact,
            ))  # fmt: skip
        return tables

    def _forward_logits(self, batch: Batch) -> Tensor:
        return torch.stack([teacher.logits(batch.inputs) for teacher in self.teachers], dim=1)

    def _forward_feature(self, feature: Feature) -> Callable[[Batch], Tensor]:
        first = self.teachers[0]

        def forward(batch: Batch) -> Tensor:
            _, (found,) = read(first.module, batch.inputs, first.modalities, [feature], first.name)
            return found.unsqueeze(1)

        return forward

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """Logits [B, M, C, ...] (None where unwanted) and features of a batch on the device."""
        if self.tables:
            values = [table.gather(batch) for table in self.tables]
            logits = values.pop(0) if self.logits else None
            return logits, [value[:, 0] for value in values]
        first = self.teachers[0]
        if self.experiment.teaching(self.modalities) != "same":
            if batch.partner is not None:  # asked about each alone; methods that look at features don't mix
                own, other = (self(part)[0] for part in (batch.unvaried(), batch.partners()))
                assert own is not None
                assert other is not None
                recipe, several = self.experiment.recipe, self.experiment.task.multilabel
                return mixed_logits(own, other, batch, recipe.temperature, several), []
            batch = batch if self.experiment.teaching(self.modalities) == "views" else batch.unvaried()
        changes = self.changes(batch) if self.changes is not None else []
        with self.experiment.accelerator.autocast(), changed(first.module, changes, first.name):
            own, found = read(first.module, batch.inputs, first.modalities, self.features, first.name)
            others = [teacher.logits(batch.inputs) for teacher in self.teachers[1:]]
        stacked = _real(torch.stack([own, *others], dim=1)) if self.logits else None
        return stacked, [_real(feature) for feature in found]


def _real(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
