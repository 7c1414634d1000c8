"""Stage 1: teachers and student train together, each pulled to its labels and to all the others (paper, section 3.2).

loss = sum over x of [ CE(z_x, y) + agreement * sum over the others o of KD(z_x <- z_o) ],  nothing detached

Of an instance that lacks a modality the terms count whose networks can see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import losses
from ..data.feeding.batch import Batch
from ..engine.loop import Fit
from ..experiment import Experiment
from ..state import load_state, state_of
from ..teachers.tap import Teacher, call, freeze
from .hiding import hidden

NAME = "cotrain"


class Cohort(nn.Module):
    """Teachers and student as one module: one optimiser, one reducer. Frozen teachers stay in eval mode."""

    def __init__(self, teachers: list[Teacher], student: nn.Module, target: str) -> None:
        super().__init__()
        self.teachers = nn.ModuleList([teacher.module for teacher in teachers])
        self.student = student
        self.views = [teacher.modalities for teacher in teachers] + [(target,)]
        self.frozen = [teacher.frozen for teacher in teachers] + [False]
        for teacher in teachers:
            if teacher.frozen:
                freeze(teacher.module)

    def train(self, mode: bool = True) -> Cohort:
        super().train(mode)
        for module, frozen in zip(self.members, self.frozen, strict=True):
            if frozen:
                module.eval()
        return self

    @property
    def members(self) -> list[nn.Module]:
        """Teachers, then the student."""
        return [*self.teachers, self.student]

    def forward(
        self, inputs: Mapping[str, Tensor], own: Mapping[int, Mapping[str, Tensor]] | None = None
    ) -> list[Tensor]:
        """Logits of every teacher, then of the student; `own` are inputs of single members in the place of all's."""
        return [call(module, (own or {}).get(number, inputs), view)
                for number, (module, view) in enumerate(zip(self.members, self.views, strict=True))]  # fmt: skip


class Cotrain:
    """The stage; see the module's docstring."""

    def __init__(self, experiment: Experiment, name: str = NAME) -> None:
        self.experiment, self.name = experiment, name
        self.module: Cohort = cohort(experiment)
        self.names = [teacher.name for teacher in experiment.teachers] + ["student"]
        self.settings = experiment.recipe.cotrain

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits, seen = logits_of(self.experiment, module, batch, epoch)
        temperature, objective = self.experiment.recipe.temperature, self.experiment.objective
        parts, pull = {}, self.settings.agreement
        for i, own in enumerate(logits):
            if self.module.frozen[i]:
                continue
            loss = objective.task(own, batch, seen[i])
            for j, other in enumerate(logits):
                if i != j and pull:
                    kd = objective.kd(own, other, batch, temperature, losses.both(seen[i], seen[j]))
                    loss = loss + (kd if pull == 1.0 else pull * kd)
            parts[self.names[i]] = loss
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        """Everyone's validation figures where the best epoch is wanted, else the student's (the cheapest)."""
        return judged(self.experiment, cast(Cohort, module), self.names, self.settings.select == "best")


def logits_of(
    experiment: Experiment, module: nn.Module, batch: Batch, epoch: int
) -> tuple[list[Tensor], list[Tensor | None]]:
    """A learning cohort's logits, with modalities hidden from teachers that may miss one, and which instances [B] each
    of its networks can see; None: all."""
    teachers = experiment.teachers
    own = {i: hidden(teacher, batch, experiment.recipe.seed, epoch) for i, teacher in enumerate(teachers)
           if teacher.modality_dropout and not teacher.frozen}  # fmt: skip
    logits: list[Tensor] = module(batch.inputs, own) if own else module(batch.inputs)
    return logits, [*(teacher.sees(batch.present) for teacher in teachers), None]


def judged(experiment: Experiment, cohort: Cohort, names: Sequence[str], every: bool) -> dict[str, Any]:
    """A cohort's validation figures: everyone's, with the mean to select by, or the student's alone."""
    record: dict[str, Any] = {}
    found = []
    for name, member, view in zip(names, cohort.members, cohort.views, strict=True):
        if (every and experiment.judges(view, "validation")) or name == "student":
            result = experiment.evaluate(member, view, "validation")
            record[f"validation/{name}/loss"] = result.loss
            record[f"validation/{name}/{result.measure}"] = result.score
            found.append(result.selection)
            if name == "student":
                record[f"validation/{result.measure}"] = result.score
    if every:
        record["selection"] = sum(found) / len(found)
    return record


def cohort(experiment: Experiment) -> Cohort:
    """The experiment's teachers and student."""
    return Cohort(experiment.teachers, experiment.student, experiment.target)


def states(experiment: Experiment) -> list[Mapping[str, Tensor]]:
    """Copies of the weights of each of the cohort's networks, on the CPU."""
    return [{name: x.detach().cpu().clone() for name, x in state_of(module).items()}
            for module in cohort(experiment).members]  # fmt: skip


def fitted(experiment: Experiment, name: str = NAME) -> Fit:
    """Co-train, or give the result of an earlier run.

    Args:
        name: of the stage.
    """
    stage = Cotrain(experiment, name)
    views = sorted({name for view in stage.module.views for name in view})
    apart = not stage.settings.agreement  # then a row without a label has nothing to say
    loader = experiment.feeds.loader("train", views, stage.settings, shuffle=True, labelled=apart)
    return experiment.train(stage, loader, stage.settings)


def run(experiment: Experiment) -> None:
    """Co-train, or take up the result of an earlier run; the experiment's networks hold the weights afterwards."""
    load_state(cohort(experiment), fitted(experiment).state)
