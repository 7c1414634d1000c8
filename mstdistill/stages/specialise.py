"""Stage 2: each mask learns alone to make its frozen teacher understood by the frozen student (paper, section 3.3).

    loss_m = KD( z_teacher_with_mask_m <- detach(z_student) )  (+ specialise.task * CE( z_teacher_with_mask_m, y ))

What else can be asked of masks is in `mask_objective`.

Masks share no parameter, so one optimiser over the sum of their losses steps each as its own Adam would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses, ranks
from ..config import CacheSettings
from ..data.feeding.batch import Batch
from ..errors import ConfigError
from ..experiment import Experiment
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call, freeze
from .constant_logits import LogitSource, constant_logits
from .mask_objective import budget_rows, corrected, mistaken

NAME = "specialise"


class Specialise:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(self, experiment: Experiment, ensemble: Ensemble) -> None:
        self.experiment, self.module, self.ensemble = experiment, ensemble, ensemble
        freeze(experiment.student)
        self.settings = experiment.recipe.specialise
        self.members = [i for i, member in enumerate(ensemble.members) if member.mask is not None]
        if self.settings.correct and (experiment.dense or experiment.task.multilabel):
            raise ConfigError("specialise.correct asks whether the student is right, which is for one class an "
                              "instance; leave it out")  # fmt: skip
        self.student = {split: self._student_logits(split) for split in ("train", "validation")}

    def _student_logits(self, split: str) -> LogitSource:
        experiment = self.experiment
        view = (experiment.target,)

        def forward(batch: Batch) -> Tensor:
            return call(experiment.student, batch.inputs, view).unsqueeze(1)

        cache = experiment.recipe.distill.cache
        settings = CacheSettings(mode=cache.mode, budget_gb=cache.budget_gb, resident_gb=cache.resident_gb)
        return constant_logits(
            experiment, f"student-{split}", forward, view, split, {"student": experiment.student}, (), settings
        )

    def modalities(self, split: str) -> list[str]:
        """What a batch of this split must hold."""
        return sorted({*self.ensemble.modalities, *self.student[split].modalities})

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        reference = self.student["train"].gather(batch)[:, 0].detach()
        rows = self._every(*self._forward(module, batch), reference, batch)
        parts = {self.ensemble.names[i]: batch.mean(rows[i] * weight) for i, weight in self._weights(batch)}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _weights(self, batch: Batch) -> list[tuple[int, Tensor | float]]:
        """Of each member with a mask: its number, and [B] 1 for what it can see."""
        seen = self.ensemble.seen(batch.present)
        return [(i, 1.0 if seen is None else seen[:, i].to(torch.float32)) for i in self.members]

    def _forward(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [B, M, C, ...], and masks [B, d] of the members where the objective asks for them."""
        if self.settings.keep is None:
            return module(batch.inputs), {}
        logits, masks = module(batch.inputs, True)
        return logits, masks

    def _every(self, logits: Tensor, masks: Mapping[int, Tensor], student: Tensor, batch: Batch) -> dict[int, Tensor]:
        """Of each member with a mask: its losses [B]."""
        settings = self.settings
        rows = {i: self._rows(logits[:, i], student, batch) for i in self.members}
        if settings.keep is not None:
            rows = {i: x + settings.keep_weight * budget_rows(masks[i], settings.keep) for i, x in rows.items()}
        return rows

    def _rows(self, masked: Tensor, student: Tensor, batch: Batch) -> Tensor:
        """[B] losses of one masked teacher's logits."""
        objective, weight = self.experiment.objective, self.settings.task
        rows = objective.kd_rows(masked, student.to(masked.dtype), self.experiment.recipe.temperature)
        if batch.labelled is not None:  # a mean over the labelled ones in a mean over all
            weight *= batch.normaliser / max(batch.labelled, 1e-12)
        if not weight and not self.settings.correct:
            return rows
        task = objective.task_rows(masked, batch.label)
        task = losses.mixed_rows(task, lambda label: objective.task_rows(masked, label), batch)
        if self.settings.correct:
            rows = corrected(rows, task, mistaken(student, batch, objective.ignore))
        return rows + weight * task if weight else rows

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        """Each mask's loss; the selection is the mean over the multimodal plus the mean over the cross-modal ones."""
        experiment = self.experiment
        device = experiment.accelerator.device
        rows = []
        for batch in experiment.feeds.loader("validation", self.modalities("validation")).epoch():
            batch = batch.to(device)
            with experiment.accelerator.autocast():
                logits, masks = self._forward(module, batch)
            reference = self.student["validation"].gather(batch)[:, 0].to(logits.dtype)
            found = self._every(logits, masks, reference, batch)
            values = [(found[i] * batch.weight.to(logits.dtype) * weight).sum() for i, weight in self._weights(batch)]
            rows.append(torch.stack([*values, batch.weight.sum().to(logits.dtype)]).to(torch.float64))
        sums = ranks.total(torch.stack(rows))
        if experiment.recipe.validation_mean == "batches":
            means = (sums[:, :-1] / sums[:, -1:]).mean(dim=0)
        else:
            means = sums[:, :-1].sum(dim=0) / sums[:, -1].sum()
        record: dict[str, Any] = {}
        kinds: dict[str, list[float]] = {}
        for i, value in zip(self.members, means.tolist(), strict=True):
            record[f"validation/{self.ensemble.names[i]}"] = value
            teacher = self.ensemble.teachers[self.ensemble.members[i].teacher]
            kinds.setdefault(teacher.kind(experiment.target), []).append(value)
        record["selection"] = sum(sum(values) / len(values) for values in kinds.values())
        return record


def run(experiment: Experiment) -> Ensemble:
    """Train the masks, or take up the result of an earlier run; returns the ensemble with them plugged in."""
    ensemble = experiment.build_ensemble("independent")
    if len(ensemble.masks):
        if experiment.result(NAME) is None:
            stage = Specialise(experiment, ensemble)
            seen = stage.modalities("train")
            loader = experiment.feeds.loader("train", seen, experiment.recipe.specialise, shuffle=True, varied=seen)
            state = experiment.train(stage, loader, experiment.recipe.specialise).state
        else:
            state = experiment.result(NAME).state  # type: ignore[union-attr]
        ensemble.load_state_dict(state)
    if ensemble.mask_mode != experiment.recipe.mask.mode:
        ensemble.mask_mode = experiment.recipe.mask.mode
        ensemble.shared.clear()
    freeze(ensemble)
    return ensemble
