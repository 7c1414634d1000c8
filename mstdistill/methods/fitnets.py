"""FitNets: hidden features of the student learn to give the teacher's, then distillation (Romero et al., ICLR 2015).

    stage hint:     sum over pairs of MSE(regressor(student's feature), teacher's feature)
    stage distill:  (1 - alpha) CE(z_s, y) + alpha KD(z_s <- z_t)

A pair is a feature of each side. The first stage trains regressors and those layers that the features depend on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..config import Settings
from ..errors import ConfigError
from ..experiment import Experiment
from ..stages import hint
from ..teachers.feature import Feature
from .baseline import Baseline, Seen, Shape
from .comparison import compare
from .mst import Outcome

PAIRS = 2


class Regressor(nn.Module):
    """A student feature to the shape of a teacher's; which layers depends on the two shapes (without batch).

    Vector to vector: a convolution along it, strided where it must shrink. Map to vector: 16 channels, flattened, a
    Linear. Map to map: a convolution, of stride 2 where the teacher's is half as large, transposed where it is twice as
    large. All end in the teacher's size, by the nearest neighbour where a layer alone doesn't meet it. A vector learns
    the mean of a teacher's map over its positions.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(teacher[1:]) if len(student) == 3 else ()
        if len(student) == 1:
            self.size = tuple(teacher[:1])
            stride = max(student[0] // teacher[0], 1)
            self.conv1d = nn.Conv1d(1, 1, 3, stride=stride, padding=1)
        elif len(teacher) == 1:
            self.conv2d = nn.Conv2d(student[0], 16, 3, padding=1)
            self.fc = nn.Linear(16 * math.prod(student[1:]), teacher[0])
        elif tuple(teacher[1:]) == tuple(2 * n for n in student[1:]):
            self.deconv = nn.ConvTranspose2d(student[0], teacher[0], 3, stride=2, padding=1, output_padding=1)
        else:
            half = tuple(teacher[1:]) == tuple((n + 1) // 2 for n in student[1:]) != tuple(student[1:])
            self.conv = nn.Conv2d(student[0], teacher[0], 3, stride=2 if half else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv1d"):
            return F.interpolate(self.conv1d(x.unsqueeze(1)), size=self.size, mode="nearest").squeeze(1)
        if hasattr(self, "fc"):
            vector: Tensor = self.fc(self.conv2d(x).flatten(1))
            return vector
        maps: Tensor = self.deconv(x) if hasattr(self, "deconv") else self.conv(x)
        return maps if tuple(maps.shape[2:]) == self.size else F.interpolate(maps, size=self.size, mode="nearest")


def hint_rows(prediction: Tensor, target: Tensor) -> Tensor:
    """[B] mean squared error of a regressor's output against the teacher's feature (paper, equation 3)."""
    if prediction.dim() == 2 and target.dim() == 4:
        target = target.mean(dim=(2, 3))
    return (prediction - target.to(prediction.dtype)).square().flatten(1).mean(dim=1)


class FitNets(Baseline):
    """Hints, then classic distillation; any task."""

    class Options(Settings):
        hint_epochs: int | None = Field(None, ge=0, description="of the hint stage; none: distill.epochs")
        hint_lr: float | None = Field(None, gt=0, description="of the hint stage; none: distill.lr")

    name = "fitnets"
    not_mixed = "it learns from features, which aren't mixed as labels are"
    needs_all_seen = "its hints are the teacher's features of each of them"
    options: Options

    def build(self) -> None:
        self.teacher_hints = self.chosen(self.teachers[0]) or self._recipe_taps() or self._hidden(True)
        self.student_hints = self.chosen(None) or self._hidden(False)
        if not self.settings.student_taps and not self.settings.teacher_taps:
            # the deepest ones pair off
            count = min(len(self.student_hints), len(self.teacher_hints))
            self.student_hints, self.teacher_hints = self.student_hints[-count:], self.teacher_hints[-count:]
        if len(self.student_hints) != len(self.teacher_hints):
            raise ConfigError(
                f"method fitnets pairs features: {len(self.student_hints)} of the student and "
                f"{len(self.teacher_hints)} of the teacher given; set baseline.student_taps and baseline.teacher_taps"
            )
        sizes: list[tuple[Shape, Shape]] = list(zip(
            self.shapes(None, self.student_hints), self.shapes(self.teachers[0], self.teacher_hints), strict=True
        ))  # fmt: skip
        self.regressors = self.new("regressors", lambda: nn.ModuleList([Regressor(s, t) for s, t in sizes]))

    def _recipe_taps(self) -> list[Feature]:
        return [Feature(tap) for tap in self.teachers[0].taps]

    def _hidden(self, teacher: bool) -> list[Feature]:
        names = self.layers(self.teachers[0] if teacher else None)
        return [Feature(name) for name in names[:-1]][-PAIRS:] or [Feature(names[-1], incoming=True)]

    def prepare(self) -> None:
        settings = self.experiment.recipe.distill
        changes = {"epochs": self.options.hint_epochs, "lr": self.options.hint_lr}
        changes = {name: value for name, value in changes.items() if value is not None}
        hint.run(
            self.experiment, self.teachers[0], self.student_hints, self.teacher_hints, self.regressors, hint_rows,
            settings.model_copy(update=changes),
        )  # fmt: skip

    def distillation(self, seen: Seen) -> Tensor:
        return self.experiment.objective.kd(seen.student, seen.teacher, seen.batch, self.temperature)


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, the student's hidden layers with its hints, then the student with it."""
    return compare(experiment, FitNets)
