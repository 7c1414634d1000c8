"""A teacher trained alone on its labels (Adam, cosine schedule, best epoch by validation cross entropy).

Nothing here depends on the method that will use it: the stage `teacher-NAME` of one run is that of every other run with
the same data, network, seed and `baseline.teacher_*`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import OptimSettings, Recipe
from ..data.feeding.batch import Batch
from ..data.view import modality_of
from ..experiment import Experiment
from ..state import load_state
from ..teachers.tap import Teacher, call, freeze
from .hiding import hidden


class TeacherAlone:
    """The stage; see the module's docstring."""

    def __init__(self, experiment: Experiment, teacher: Teacher) -> None:
        self.experiment, self.teacher, self.module = experiment, teacher, teacher.module
        self.name = stage_name(teacher)

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        inputs = hidden(self.teacher, batch, self.experiment.recipe.seed, epoch)
        logits, seen = call(module, inputs, self.teacher.modalities), self.teacher.sees(batch.present)
        return {"loss": self.experiment.objective.task(logits, batch, seen)}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        return self.experiment.validation(module, self.teacher.modalities)


def stage_name(teacher: Teacher) -> str:
    """The stage's name and folder."""
    return f"teacher-{teacher.name}"


def ready(experiment: Experiment, teacher: Teacher) -> bool:
    """Whether a teacher came trained: frozen, with weights of its own, or with no parameter that learns."""
    pairing = experiment.recipe.models.get(experiment.recipe.target)
    given = {one.name for one in pairing.teachers if one.weights} if pairing else set()
    return teacher.frozen or teacher.name in given or not any(p.requires_grad for p in teacher.module.parameters())


def settings_of(recipe: Recipe) -> OptimSettings:
    """How the stage learns."""
    return OptimSettings(
        epochs=recipe.distill.epochs if recipe.baseline.teacher_epochs is None else recipe.baseline.teacher_epochs,
        lr=recipe.baseline.teacher_lr or recipe.distill.lr,
        schedule="cosine",
    )


def run(experiment: Experiment, teacher: Teacher) -> None:
    """Train it, or take up the result of an earlier run; afterwards it is frozen, with the selected weights."""
    if not ready(experiment, teacher):
        settings = settings_of(experiment.recipe)
        stage = TeacherAlone(experiment, teacher)
        loader = experiment.feeds.loader("train", teacher.modalities, settings, shuffle=True, labelled=True)
        load_state(teacher.module, experiment.train(stage, loader, settings).state)
    freeze(teacher.module)
    _judge(experiment, teacher)


def _judge(experiment: Experiment, teacher: Teacher) -> None:
    """Show its validation score; warn where it is near chance."""
    if not experiment.judges(teacher.modalities, "validation"):
        return
    result = experiment.evaluate(teacher.module, teacher.modalities, "validation")
    experiment.screen.say(
        f"teacher {teacher.name} ({', '.join(map(modality_of, teacher.modalities))}): validation {result.titled}, "
        f"loss {result.loss:.3f}"
    )
    if result.near_chance:
        experiment.screen.say(
            f"warning: teacher {teacher.name} is near chance ({result.near_chance}): it "
            "has nothing to teach; raise baseline.teacher_epochs or baseline.teacher_lr, or give ready weights"
        )
