"""MLLD: distributions, relations of classes and of instances, at several temperatures (Jin et al., CVPR 2023).

With P_T = softmax(z / T) [B, C]:

    L = mean over T of [ KD_T + MSE(P_s' P_s, P_t' P_t) + MSE(P_s P_s', P_t P_t') ] / 3
    loss = (1 - alpha) CE + alpha L

Both relations are over the instances of a micro-batch of all processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..config import Settings
from ..experiment import Experiment
from ..kernels import kd_rows
from .baseline import Baseline, Seen, relational
from .comparison import compare
from .mst import Outcome


def mlld_parts(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The instance, class and batch parts at one temperature, scalars, from logits [B, C]."""
    p_s, p_t = ((x / temperature).softmax(dim=1) for x in (student, teacher.to(student.dtype)))
    instance = kd_rows(student, teacher, temperature).mean()
    return instance, F.mse_loss(p_s.T @ p_s, p_t.T @ p_t), F.mse_loss(p_s @ p_s.T, p_t @ p_t.T)


def mlld_loss(student: Tensor, teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Mean over the temperatures and the three parts, a scalar."""
    parts = [sum(mlld_parts(student, teacher, one), student.new_zeros(())) for one in temperatures]
    return sum(parts, student.new_zeros(())) / (3 * len(parts))


class Mlld(Baseline):
    """Multi-level logits; classification."""

    class Options(Settings):
        temperatures: list[float] = Field([2.0, 3.0, 4.0, 5.0, 6.0], min_length=1, description="each counts the same")

    name = "mlld"
    one_class = "it compares distributions over all classes, and here each class is a yes or no of its own"
    needs_all_seen = "it compares the instances of a batch with one another"
    not_dense = "it relates all instances of a batch to each other, and pixels are too many for that"
    options: Options

    def distillation(self, seen: Seen) -> Tensor:
        temperatures = self.options.temperatures
        return relational(seen.batch, lambda s, t: mlld_loss(s, t, temperatures), seen.student, seen.teacher)


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Mlld)
