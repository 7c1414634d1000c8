"""Self-training between stages 1 and 2: in each round every network learns from what all of them say together.

    r     = sum over m of w_m z_m / T_m             constant in a round; see `certainty`
    loss  = sum over x of [ CE(z_x, y) + weight * KD(z_x <- r) ]

Instances without a label get one this way, and what one modality shows teaches the networks that see another. The
student says its own in r and learns beside its teachers; its epochs count as its own in every comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..certainty import as_pairs, log_weights
from ..config import CacheSettings
from ..data.feeding.batch import Batch
from ..engine.loop import Fit
from ..errors import ConfigError
from ..experiment import Experiment
from ..state import load_state
from . import cotrain
from .constant_logits import LogitSource, constant_logits
from .cotrain import Cohort


def stage_name(number: int) -> str:
    """Of a round from 1: the stage's name and folder."""
    return f"round-{number}"


def latest(experiment: Experiment) -> Fit | None:
    """The result that stage 2 begins from: of the last round, or of the co-training."""
    count = experiment.recipe.rounds.count
    return experiment.result(stage_name(count) if count else cotrain.NAME)


def first_states(experiment: Experiment) -> list[Mapping[str, Tensor]]:
    """The networks' weights before anything is trained, if rounds begin with them."""
    settings = experiment.recipe.rounds
    return cotrain.states(experiment) if settings.count and settings.anew else []


class Round:
    """The stage; see the module's docstring.

    Args:
        number: from 1.
        first: weights to begin with; empty: those of the round before.
    """

    def __init__(self, experiment: Experiment, number: int, first: list[Mapping[str, Tensor]]) -> None:
        self.experiment, self.name, self.settings = experiment, stage_name(number), experiment.recipe.each_round
        self.module: Cohort = Cohort(experiment.teachers, experiment.student, experiment.target)
        self.names = [teacher.name for teacher in experiment.teachers] + ["student"]
        self.views = sorted({name for view in self.module.views for name in view})
        self.labels = self._soft_labels()
        for module, frozen, state in zip(self.module.members, self.module.frozen, first, strict=False):
            if not frozen:
                load_state(module, state)

    def _soft_labels(self) -> LogitSource:
        """The mixture's logits [B, 1, C, ...] on the training data, from the networks as they are now."""
        experiment, settings, cohort = self.experiment, self.settings, self.module
        if not experiment.splits["train"].deterministic:
            raise ConfigError(
                "rounds.count: soft labels are of data that stay the same, and these change at each reading"
            )
        cohort.eval()

        def each(batch: Batch) -> Tensor:
            found = cohort(batch.inputs)
            wide = torch.float64 if any(z.dtype == torch.float64 for z in found) else torch.float32
            return torch.stack([z.to(wide) for z in found], dim=1)

        def seen(batch: Batch) -> Tensor | None:
            there = [teacher.sees(batch.present) for teacher in experiment.teachers]
            known = next((x for x in there if x is not None), None)
            if known is None:
                return None
            every = torch.ones_like(known)  # the student sees all
            return torch.stack([*(every if x is None else x for x in there), every], dim=1)

        found = experiment.temperatures(each, self.views, self.names, seen)

        def mixture(batch: Batch) -> Tensor:
            logits = each(batch)
            at = logits.new_tensor(found)
            said = as_pairs(logits) if experiment.task.multilabel else logits
            weights = log_weights(said, at, settings.rule, settings.sharpness, seen(batch)).exp() / at
            return torch.einsum("bm,bm...->b...", weights, logits).unsqueeze(1)

        cache = experiment.recipe.distill.cache
        modules: dict[str, nn.Module] = {"cohort": cohort}
        facts = (settings.rule, settings.sharpness, *found)
        return constant_logits(
            experiment, f"{self.name}-train", mixture, self.views, "train", modules, facts,
            CacheSettings(mode="always", dtype=cache.dtype, resident_gb=cache.resident_gb), still=True,
        )  # fmt: skip

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        recipe, objective = self.experiment.recipe, self.experiment.objective
        reference = self.labels.gather(batch)[:, 0]
        parts = {}
        logits, seen = cotrain.logits_of(self.experiment, module, batch, epoch)
        for name, own, there, frozen in zip(self.names, logits, seen, self.module.frozen, strict=True):
            if not frozen:
                rows = objective.kd_rows(own, reference.to(own.dtype), self.settings.temperature or recipe.temperature)
                rows = rows if there is None else rows * there
                parts[name] = objective.task(own, batch, there)
                parts[name] = parts[name] + self.settings.weight * batch.mean(rows)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        """Everyone's validation figures where the best epoch is wanted, else the student's (the cheapest)."""
        return cotrain.judged(self.experiment, cast(Cohort, module), self.names, self.settings.select == "best")


def run(experiment: Experiment, first: list[Mapping[str, Tensor]]) -> None:
    """Run what rounds there are, or take up their results; the experiment's networks hold the last one's weights.

    Args:
        first: see `first_states`.
    """
    settings = experiment.recipe.each_round
    for number in range(1, settings.count + 1):
        fit = experiment.result(stage_name(number))
        if fit is None:
            stage = Round(experiment, number, first)
            experiment.screen.say(f"round {number} of {settings.count}: soft labels {stage.labels.about}")
            loader = experiment.feeds.loader("train", stage.views, settings, shuffle=True)
            fit = experiment.train(stage, loader, settings, {"soft_labels": stage.labels.about})
        load_state(Cohort(experiment.teachers, experiment.student, experiment.target), fit.state)
