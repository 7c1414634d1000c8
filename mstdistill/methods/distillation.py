"""The student learns from labels and from what a method of the comparison makes of its teachers.

The stage runs any `baseline.Baseline`: it reads the features that the method looks at, gives it logits and
features of the teachers (from tables where they are constant) and minimises its objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..state import load_state
from ..teachers.feature import read
from ..teachers.tap import Teacher
from ..weights import part
from .baseline import Baseline, Seen

NAME = "distill"


class Learner(nn.Module):
    """All that learns, as one module: one optimiser, one reducer.

    Args:
        method: its features are read, its modules learn too.
        teacher: one that learns with the student.
    """

    def __init__(self, student: nn.Module, view: Sequence[str], method: Baseline, teacher: Teacher | None) -> None:
        super().__init__()
        self.student, self.parts = student, method.modules
        self.teacher = teacher.module if teacher else None
        self.views = tuple(view), teacher.modalities if teacher else ()
        self.features = list(method.student_features), list(method.teacher_features)
        # what every process computes alike needs no sending round at each forward
        shared = getattr(method.modules, "shared_buffers", ())
        self._ddp_params_and_buffers_to_ignore = [f"parts.{name}" for name in shared]

    def forward(self, inputs: Mapping[str, Tensor], constants: Sequence[Tensor]) -> dict[str, Tensor]:
        """Logits of the student (`student`) and of a teacher that learns (`teacher`), and what the method's modules
        make of the features; `constants` are those of a teacher that doesn't learn."""
        logits, own = read(self.student, inputs, self.views[0], self.features[0], "student")
        found = {"student": logits}
        theirs = list(constants)
        if self.teacher is not None:
            found["teacher"], theirs = read(self.teacher, inputs, self.views[1], self.features[1], "teacher")
        if self.parts is not None:
            found |= self.parts(own, theirs)
        return found


class Distillation:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(self, experiment: Experiment, method: Baseline) -> None:
        self.experiment, self.method = experiment, method
        experiment.thaw_student()
        learning = method.teachers[0] if method.teacher_learns else None
        self.module = Learner(experiment.student, (experiment.target,), method, learning)
        self.knowledge = method.knowledge()
        seen = {experiment.target, *(learning.modalities if learning else ())}
        self.modalities = sorted(seen | set(self.knowledge.modalities if self.knowledge else ()))

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits, features = self.knowledge(batch) if self.knowledge else (None, [])
        found = module(batch.inputs, features)
        student, teacher = found.pop("student"), found.pop("teacher", None)
        if teacher is not None:
            logits = teacher.unsqueeze(1)
        return self.method.objective(Seen(batch, epoch, student, logits, found))

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        return self.experiment.validation(cast(Learner, module).student, (self.experiment.target,))


def run(experiment: Experiment, method: Baseline) -> list[dict[str, Any]]:
    """Train, or take up the result of an earlier run; the networks hold the selected weights afterwards.

    Returns:
        The stage's figures per epoch.
    """
    settings = experiment.recipe.distill
    found = experiment.result(NAME)
    if found is None:
        stage = Distillation(experiment, method)
        facts = {"method": method.name, "teachers": [teacher.name for teacher in method.teachers]}
        if stage.knowledge is not None:
            experiment.screen.say(f"teacher knowledge {stage.knowledge.about}")
            facts["teacher_knowledge"] = stage.knowledge.about
        nobody, varied = method.taught_by == "nobody", None if method.teacher_learns else (experiment.target,)
        loader = experiment.feeds.loader(
            "train", stage.modalities, settings, shuffle=True, labelled=nobody, varied=varied
        )
        found = experiment.train(stage, loader, settings, facts)
    load_state(experiment.student, part(found.state, "student"))
    if method.teacher_learns:
        load_state(method.teachers[0].module, part(found.state, "teacher"))
    return found.history
