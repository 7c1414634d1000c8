"""FitNets' first stage: regressors and the student's guided layers learn to give a frozen teacher's features.

    loss = sum over pairs of MSE( regressor(student's feature), teacher's feature )

Guided are the layers that the features depend on; the others keep their start. The best epoch by validation hint loss
is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import OptimSettings
from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..state import load_state
from ..teachers.feature import Feature, read
from ..teachers.tap import Teacher
from ..weights import part
from .knowledge import Knowledge

NAME = "hint"


class Guided(nn.Module):
    """Student and regressors as one module: one optimiser, one reducer."""

    reads_inside = True  # the logits lie outside of the loss (see `engine.fully_sharded`)

    def __init__(self, student: nn.Module, view: str, features: Sequence[Feature], regressors: nn.Module) -> None:
        super().__init__()
        self.student, self.regressors = student, regressors
        self.view, self.features = view, list(features)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What each regressor makes of its feature."""
        _, found = read(self.student, inputs, (self.view,), self.features, "student")
        return [one(x) for one, x in zip(self.regressors.children(), found, strict=True)]


class Hint:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(
        self,
        experiment: Experiment,
        teacher: Teacher,
        student_features: Sequence[Feature],
        teacher_features: Sequence[Feature],
        regressors: nn.Module,
        rows: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.experiment, self.rows = experiment, rows
        self.module = Guided(experiment.student, experiment.target, student_features, regressors)
        self._guide(student_features)
        self.knowledge = {
            split: Knowledge(experiment, [teacher], teacher_features, logits=False, split=split)
            for split in ("train", "validation")
        }

    def _guide(self, features: Sequence[Feature]) -> None:
        """Let those parameters learn that the features depend on: what never gets a gradient has nothing to step by."""
        experiment = self.experiment
        experiment.thaw_student()
        student, view = experiment.student, (experiment.target,)
        batch = experiment.first_batch(view, 2)
        parameters = [p for p in student.parameters() if p.requires_grad]
        was_training = student.training
        with torch.enable_grad():
            _, found = read(student.eval(), batch.inputs, view, features, "student")
            total = torch.stack([x.sum() for x in found]).sum()
            reached = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else []
        student.train(was_training)
        for parameter, gradient in zip(parameters, reached, strict=False):
            parameter.requires_grad_(gradient is not None)

    def modalities(self, split: str) -> list[str]:
        """What a batch of this split must hold."""
        return sorted({self.experiment.target, *self.knowledge[split].modalities})

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        predictions = module(batch.inputs)
        _, targets = self.knowledge["train"](batch)
        parts = [batch.mean(self.rows(x, target)) for x, target in zip(predictions, targets, strict=True)]
        return {"loss": torch.stack(parts).sum()} | {f"hint{number}": part for number, part in enumerate(parts)}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        """The hint loss, averaged over the instances."""
        experiment = self.experiment
        device, sums = experiment.accelerator.device, []
        for batch in experiment.feeds.loader("validation", self.modalities("validation")).epoch():
            batch = batch.to(device)
            with experiment.accelerator.autocast():
                predictions = module(batch.inputs)
            _, targets = self.knowledge["validation"](batch)
            rows = torch.stack([self.rows(x.to(t.dtype), t) for x, t in zip(predictions, targets, strict=True)])
            weight = batch.weight.to(rows.dtype)
            sums.append(torch.stack([(rows.sum(dim=0) * weight).sum(), weight.sum()]).to(torch.float64))
        loss, count = ranks.total(torch.stack(sums).sum(dim=0)).tolist()
        return {"validation/loss": loss / count, "selection": loss / count}


def run(
    experiment: Experiment,
    teacher: Teacher,
    student_features: Sequence[Feature],
    teacher_features: Sequence[Feature],
    regressors: nn.Module,
    rows: Callable[[Tensor, Tensor], Tensor],
    settings: OptimSettings,
) -> None:
    """Train, or take up the result of an earlier run; the experiment's student holds the selected weights afterwards.

    Args:
        teacher: frozen.
        student_features, teacher_features: pairs.
        regressors: a `ModuleList`, one a pair.
        rows: [B] loss of a prediction and a feature.
    """
    found = experiment.result(NAME)
    if found is None:
        stage = Hint(experiment, teacher, student_features, teacher_features, regressors, rows)
        experiment.screen.say(f"hints {stage.knowledge['train'].about}")
        seen, varied = stage.modalities("train"), (experiment.target,)
        loader = experiment.feeds.loader("train", seen, settings, shuffle=True, varied=varied)
        found = experiment.train(stage, loader, settings)
    load_state(experiment.student, part(found.state, "student"))
