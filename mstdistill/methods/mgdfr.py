"""MGDFR: distillation from a teacher that keeps those features alone which matter to both modalities (Xue et al., "The
modality focusing hypothesis", ICLR 2023).

    stage joint:    CE(z_t, y) + CE(z_s, y) + MSE(z_t, z_s); both learn
    stage salience: s_c = mean over repeats of MSE(z_t with channel c permuted over the batch, z_s), scaled to [0, 1]
    stage distill:  a fresh student; (1 - alpha) CE + alpha KD(z_s <- z_t), alpha fixed, where in the teacher's feature
                    the `ratio` least salient channels hold their batch's mean

Permutations and means are over a micro-batch of one process.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .. import ranks
from ..config import Settings
from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..stages import joint, salience
from ..stages.knowledge import Knowledge
from ..state import load_state, state_of
from ..teachers.feature import Change, Feature, channel_axis
from .baseline import Baseline, Seen
from .comparison import compare
from .mst import Outcome


def frozen_channels(x: Tensor, index: Tensor, axis: int = 1, weight: Tensor | None = None) -> Tensor:
    """A feature [B, C, ...] whose channels at `index` hold their mean over the batch, position by position.

    Args:
        axis: of the channels.
        weight: [B] 0 for rows that are padding; with it the mean is over all processes' rows, and has no gradient.
    """
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    chosen = torch.zeros(x.shape[axis], dtype=torch.bool, device=x.device).index_fill(0, index, True).view(shape)
    if weight is None:
        return torch.where(chosen, x.mean(dim=0, keepdim=True), x)
    wide = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    sums = ranks.total(torch.einsum("b,b...->...", weight.to(wide.dtype), wide))
    mean = sums / ranks.total(weight.sum()).clamp(min=1).to(wide.dtype)
    return torch.where(chosen, mean.to(x.dtype).unsqueeze(0), x)


def least_salient(values: Tensor, ratio: float) -> Tensor:
    """Indices of the floor(ratio * C) least salient channels among values [C]; of equal ones the first."""
    return torch.argsort(values, stable=True)[: int(ratio * len(values))]


class Mgdfr(Baseline):
    """A teacher with the features that both modalities need; any task."""

    class Options(Settings):
        ratio: float = Field(0.75, ge=0, le=1, description="share of the channels that hold their mean")
        repeats: int = Field(10, ge=1, description="permutations of each channel per batch")
        instances: int | None = Field(None, ge=2, description="measure salience on so many; none: on all")
        joint_epochs: int | None = Field(None, ge=0, description="of the joint stage; none: distill.epochs")
        joint_lr: float | None = Field(None, gt=0, description="of the joint stage; none: distill.lr")
        joint_optimizer: Literal["adam", "adamw", "sgd"] | None = Field(None, description="none: distill.optimizer")

    name = "mgdfr"
    not_mixed = "it changes features of its teacher by the batch"
    needs_all_seen = "teacher and student agree on each of them"
    trains_teacher = True
    options: Options

    def build(self) -> None:
        teacher = self.teachers[0]
        found = self.chosen(teacher, 1) or [Feature(self.layers(teacher)[-1], incoming=True)]
        self.place, self.index = found[0], torch.zeros(0, dtype=torch.int64)
        self.shapes(teacher, found)

    def prepare(self) -> None:
        experiment, teacher, own = self.experiment, self.teachers[0], self.options
        start = {name: x.detach().clone() for name, x in state_of(experiment.student).items()}
        changes = {"epochs": own.joint_epochs, "lr": own.joint_lr, "optimizer": own.joint_optimizer}
        settings = experiment.recipe.distill.model_copy(update={k: v for k, v in changes.items() if v is not None})
        self.thaw(teacher)
        joint.run(experiment, teacher, settings)
        values = salience.run(experiment, teacher, self.place, own.repeats, own.instances)
        self.index = least_salient(values, own.ratio).to(experiment.accelerator.device)
        load_state(experiment.student, start)

    def alpha(self, epoch: int) -> float:
        return self.settings.alpha

    def knowledge(self) -> Knowledge:
        place, module = self.place, self.teachers[0].module

        def changes(batch: Batch) -> list[tuple[Feature, Change]]:
            def change(x: Tensor) -> Tensor:
                return frozen_channels(x, self.index, channel_axis(module, place, x), batch.weight)

            return [(place, change)]

        return Knowledge(self.experiment, self.teachers, changes=changes)

    def distillation(self, seen: Seen) -> Tensor:
        return self.experiment.objective.kd(seen.student, seen.teacher, seen.batch, self.temperature)


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, teacher and student together, look for salient channels, then train a fresh student."""
    return compare(experiment, Mgdfr)
