"""Average: plain distillation from all unmasked teachers at once, each counting the same: the mixture's honest rival.

losses:  loss = (1 - alpha) CE + alpha mean over m of KD(z_s <- z_m)
logits:  loss = (1 - alpha) CE + alpha KD(z_s <- mean over m of z_m)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import Settings
from ..experiment import Experiment
from ..kernels import kd_rows
from .baseline import Baseline, Seen
from .comparison import compare
from .mst import Outcome

# From a learner's and a reference's logits and the temperature to losses [B].
Rows = Callable[[Tensor, Tensor, float], Tensor]


def average_kd_rows(
    student: Tensor, teachers: Tensor, temperature: float, of: str = "losses", taught: Tensor | None = None,
    rows_of: Rows = kd_rows,
) -> Tensor:  # fmt: skip
    """[B] distillation loss from teachers [B, M, C, ...]: the mean of their losses, or of their mean logits; with
    `taught` [B, M] of those that see an instance."""
    if taught is not None:
        share = taught.to(teachers.dtype) / taught.sum(dim=1, keepdim=True).clamp(min=1)
        if of == "logits":
            return rows_of(student, torch.einsum("bm,bm...->b...", share, teachers), temperature)
        every = torch.stack([rows_of(student, one, temperature) for one in teachers.unbind(dim=1)], dim=1)
        return (every * share).sum(dim=1)
    if of == "logits":
        return rows_of(student, teachers.mean(dim=1), temperature)
    rows = [rows_of(student, one, temperature) for one in teachers.unbind(dim=1)]
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total / len(rows)


class Average(Baseline):
    """All teachers, one weight; any task."""

    class Options(Settings):
        of: Literal["losses", "logits"] = Field("losses", description="what is averaged")

    name = "average"
    taught_by = "all"
    options: Options

    def distillation(self, seen: Seen) -> Tensor:
        assert seen.teachers is not None
        rows = average_kd_rows(seen.student, seen.teachers, self.temperature, self.options.of, seen.taught,
                               self.experiment.objective.kd_rows)  # fmt: skip
        return seen.batch.mean(rows)


def run(experiment: Experiment) -> Outcome:
    """Train each teacher alone, then the student with all of them."""
    return compare(experiment, Average)
