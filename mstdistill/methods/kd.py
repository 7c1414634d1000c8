"""KD: the student's softened distribution is pulled to one teacher's (Hinton, Vinyals and Dean, 2015).

loss = (1 - alpha) CE(z_s, y) + alpha KD(z_s <- z_t)
"""

from __future__ import annotations

from torch import Tensor

from ..experiment import Experiment
from .baseline import Baseline, Seen
from .comparison import compare
from .mst import Outcome


class Kd(Baseline):
    """Classic distillation; any task."""

    name = "kd"

    def distillation(self, seen: Seen) -> Tensor:
        return self.experiment.objective.kd(seen.student, seen.teacher, seen.batch, self.temperature)


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Kd)
