"""MGDFR's first stage: teacher and student learn together and agree on their logits.

    loss = CE(z_t, y) + CE(z_s, y) + MSE(z_t, z_s)

Nothing is detached. The epoch with the lowest sum of both validation cross entropies is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..config import OptimSettings
from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..state import load_state
from ..teachers.tap import Teacher, call, freeze
from ..weights import part

NAME = "joint"


class Pair(nn.Module):
    """Teacher and student as one module: one optimiser, one reducer."""

    def __init__(self, teacher: Teacher, student: nn.Module, view: str) -> None:
        super().__init__()
        self.teacher, self.student = teacher.module, student
        self.views = teacher.modalities, (view,)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the teacher and of the student."""
        return call(self.teacher, inputs, self.views[0]), call(self.student, inputs, self.views[1])


def square_rows(a: Tensor, b: Tensor) -> Tensor:
    """[B] mean squared difference of logits [B, ...]."""
    return (a - b).square().flatten(1).mean(dim=1)


class Joint:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(self, experiment: Experiment, teacher: Teacher) -> None:
        self.experiment = experiment
        experiment.thaw_student()
        self.module = Pair(teacher, experiment.student, experiment.target)

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        teacher, student = module(batch.inputs)
        objective = self.experiment.objective
        parts = {
            "teacher": objective.task(teacher, batch),
            "student": objective.task(student, batch),
            "agreement": batch.mean(square_rows(teacher, student)),
        }
        return {"loss": parts["teacher"] + parts["student"] + parts["agreement"], **parts}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        pair, evaluate = cast(Pair, module), self.experiment.evaluate
        teacher = evaluate(pair.teacher, pair.views[0], "validation")
        student = evaluate(pair.student, pair.views[1], "validation")
        return {
            "validation/teacher/loss": teacher.loss,
            "validation/student/loss": student.loss,
            f"validation/{student.measure}": student.score,
            "selection": teacher.selection + student.selection,
        }


def run(experiment: Experiment, teacher: Teacher, settings: OptimSettings) -> None:
    """Train, or take up the result of an earlier run; both networks hold the selected weights afterwards, and the
    teacher is frozen."""
    found = experiment.result(NAME)
    if found is None:
        stage = Joint(experiment, teacher)
        loader = experiment.feeds.loader(
            "train", sorted({experiment.target, *teacher.modalities}), settings, shuffle=True
        )
        found = experiment.train(stage, loader, settings)
    for name, module in (("teacher", teacher.module), ("student", experiment.student)):
        load_state(module, part(found.state, name))
    freeze(teacher.module)
