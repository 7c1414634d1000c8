"""The comparison: the student from the same start, with labels alone, as many epochs and the same selection."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import OptimSettings
from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..state import load_state
from ..teachers.tap import call

NAME = "alone"


class Alone:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(self, experiment: Experiment, student: nn.Module) -> None:
        self.experiment, self.module = experiment, student
        self.view = (experiment.target,)

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {"loss": self.experiment.objective.task(call(module, batch.inputs, self.view), batch)}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        return self.experiment.validation(module, self.view)


def run(experiment: Experiment, student: nn.Module) -> nn.Module:
    """Train `student` in place with the distillation stage's optimiser settings; it keeps the selected weights."""
    recipe = experiment.recipe
    epochs = recipe.alone.epochs or recipe.student_epochs
    settings = OptimSettings(**{
        **{name: getattr(recipe.distill, name) for name in OptimSettings.model_fields}, "epochs": epochs,
    })  # fmt: skip
    stage = Alone(experiment, student)
    loader = experiment.feeds.loader("train", stage.view, settings, shuffle=True, labelled=True)
    load_state(student, experiment.train(stage, loader, settings).state)
    return student
