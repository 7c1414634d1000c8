"""Stage 3: student and router learn from labels and from the mixture of specialised teachers (paper, section 3.4).

    loss = w_task CE(z_s, y) + w_kd L_kd + w_lb L_lb  (+ w_router L_router, where the recipe wants a task signal)

Teachers and masks are frozen, and augmentation changes the student's modality alone, so each instance's teacher logits
are constants: they come from a table computed once, and the step costs what the student costs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import losses
from ..config import Decay
from ..data.feeding.batch import Batch
from ..engine.seeding import initialising, named_seed
from ..experiment import Experiment
from ..informed_router import router_for
from ..kernels import Routing
from ..routing import RoutingRule
from ..state import load_state
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call
from ..weights import part
from .constant_logits import LogitSource, constant_logits
from .unmasked import Unmasked

NAME = "distill"


class Learner(nn.Module):
    """Student and router as one module: one optimiser, one reducer.

    Args:
        router: see `informed_router.router_for`.
    """

    def __init__(self, student: nn.Module, router: nn.Module) -> None:
        super().__init__()
        self.student, self.router = student, router

    def forward(self, view: Tensor, *said: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the student and of the router, which reads them undetached, and what teachers `said` where it reads
        that."""
        logits = call(self.student, {"view": view}, ("view",))
        return logits, self.router(logits, *said)


def decayed(weight: float, decay: Decay, epoch: int) -> float:
    """A loss weight in an epoch: multiplied after epochs 0, every, 2*every, ... (quirk 5)."""
    events = -(-epoch // decay.every)
    if not decay.first and epoch > 0:
        events -= 1
    return weight * decay.factor**events


class Distill:
    """The stage; see the module's docstring."""

    name = NAME

    def __init__(self, experiment: Experiment, ensemble: Ensemble) -> None:
        recipe = experiment.recipe
        self.experiment, self.ensemble, self.names = experiment, ensemble, ensemble.names
        num_teachers, num_classes = len(ensemble.members), experiment.task.num_classes
        settings = recipe.routing
        self.rule = RoutingRule(
            settings.rule,
            settings.k,
            settings.signal,
            settings.fixed,
            named_seed(recipe.seed, "routing") % 2**31,
            settings.sharpness,
        )
        self.rule.check(num_teachers)
        with initialising(recipe.seed, "router"):
            router = router_for(settings.reads, experiment.dense, num_classes, len(ensemble.teachers), num_teachers)
        experiment.thaw_student()
        router.to(next(experiment.student.parameters()).dtype)
        self.module = Learner(experiment.student, router)
        self.teachers = self._teacher_logits(ensemble)
        self.unmasked = Unmasked(experiment, ensemble, self.teachers) if settings.reads == "teachers" else None
        self.temperature = self._calibrate(ensemble) if self.rule.judges else None

    def _calibrate(self, ensemble: Ensemble) -> Tensor:
        """[M] the teachers' temperatures; 1 where the recipe wants none."""
        experiment = self.experiment
        found = [1.0] * len(ensemble.members)
        if experiment.recipe.routing.calibrate:
            found = experiment.temperatures(lambda batch: ensemble(batch.inputs), ensemble.modalities, ensemble.names,
                                            lambda batch: ensemble.seen(batch.present))  # fmt: skip
        return torch.tensor(found, dtype=torch.float64, device=experiment.accelerator.device)

    def _teacher_logits(self, ensemble: Ensemble) -> LogitSource:
        experiment = self.experiment
        ensemble.place(experiment.accelerator.device)
        modules: dict[str, nn.Module] = {"masks": ensemble}
        modules |= {f"teacher {teacher.name}": teacher.module for teacher in ensemble.teachers}

        def forward(batch: Batch) -> Tensor:
            logits, seen = ensemble(batch.inputs), ensemble.seen(batch.present)
            # what a teacher says of nothing is never read; zeros have a weight of 0 without harm
            return (
                logits if seen is None else logits.masked_fill(~seen.view(*seen.shape, *(1,) * (logits.dim() - 2)), 0.0)
            )

        return constant_logits(
            experiment, "teachers-train", forward, ensemble.modalities, "train",
            modules, (ensemble.mask_mode, *ensemble.names), experiment.recipe.distill.cache,
            lambda batch, indices: ensemble.chosen(batch.inputs, indices),
        )  # fmt: skip

    @property
    def modalities(self) -> list[str]:
        """What a batch must hold: with cached teachers the student's modality alone."""
        return sorted({self.experiment.target, *(name for source in self.sources for name in source.modalities)})

    @property
    def sources(self) -> list[LogitSource]:
        """Where teachers' logits come from: of the mixture, and where the router reads teachers, of those."""
        return [self.teachers] if self.unmasked is None else [self.teachers, self.unmasked.source]

    @property
    def recordable(self) -> bool:
        """Whether `losses` can be recorded: it can where it reads the teachers' logits from the device's memory."""
        return all(one.resident for one in self.sources) and self.experiment.recipe.augment.teachers != "views"

    def fixed(self, epoch: int) -> tuple[Hashable, ...]:
        """What `losses` takes from Python and not from memory: a recorded step holds while it stays the same."""
        weights = self.experiment.recipe.distill.weights
        draws = epoch if self.rule.name == "random" else 0
        return (
            decayed(weights.kd, weights.kd_decay, epoch),
            decayed(weights.balance, weights.balance_decay, epoch),
            draws,
        )

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        recipe, weights = self.experiment.recipe, self.experiment.recipe.distill.weights
        objective = self.experiment.objective
        view, said = batch.inputs[self.experiment.target], None
        if self.unmasked is None:
            student, scores = module(view)
        else:
            said = self.unmasked.logits(batch)
            student, scores = module(view, self.unmasked.read(said, batch))
        seen = self.ensemble.seen(batch.present)
        routing = self.rule.select(scores, batch.index, epoch, batch.weight, recipe.routing.balance, seen)
        chosen = self.teachers.choose is not None and self.rule.needs_chosen_alone
        if self.teachers.choose is not None and chosen:
            teachers, rows = self.teachers.choose(batch, routing.indices), None
        else:
            teachers, rows = self.teachers.look(batch)
        if self.temperature is not None:
            every = teachers if rows is None else teachers[rows]
            routing = self.rule.judged(routing, every.to(routing.log_probs.dtype), self.temperature,
                                       objective.several)  # fmt: skip
        dtype = routing.log_probs.dtype
        share = batch.scale(dtype)
        whole = objective.scale(batch, dtype, self.experiment.dense)
        own = whole if batch.partner is None else whole * batch.partner.own.to(dtype)
        scaled = objective.kernel_scale(own, batch.label) if objective.fused else own
        found = self.rule.distillation(
            student, teachers, routing, recipe.temperature, rows=rows, chosen=chosen,
            label=batch.label if objective.fused else None,
            kd_scale=share * decayed(weights.kd, weights.kd_decay, epoch), task_scale=scaled * weights.task,
            ignore_index=losses.ignored(objective.ignore), several=objective.several,
            class_weights=objective.kernel_weights,
        )  # fmt: skip
        task = found.task if objective.fused else objective.sums(student, batch.label)
        parts = {
            "task": (task * scaled).sum(),
            "kd": (found.kd * share).sum(),
            "balance": losses.balance(routing, batch, recipe.routing.balance),
        }
        loss = found.loss.sum() if objective.fused else found.loss.sum() + weights.task * parts["task"]
        if batch.partner is not None:
            theirs = (objective.sums(student.to(dtype), batch.partner.label) * (whole - own)).sum()
            loss, parts["task"] = loss + weights.task * theirs, parts["task"] + theirs.detach()
        loss = loss + decayed(weights.balance, weights.balance_decay, epoch) * parts["balance"]
        if self.rule.signal in ("task", "both"):
            parts["router"] = self._task_signal(batch, routing, said)
            loss = loss + weights.router * parts["router"]
        parts["share"] = self.rule.shares(routing, batch.weight) / batch.normaliser
        return {"loss": loss, **parts}

    def _task_signal(self, batch: Batch, routing: Routing, said: Tensor | None) -> Tensor:
        if said is not None and self.unmasked is not None and self.unmasked.honest:
            known = self.unmasked.of_members(said)  # of a label that it has learned every teacher is sure
        else:
            known = self.teachers.gather(batch)
        signal = self.rule.task_signal(known, batch.label, routing)
        signal = losses.mixed_rows(signal, lambda label: self.rule.task_signal(known, label, routing), batch)
        return batch.mean(signal) if batch.labelled is None else (signal * batch.task_scale(signal.dtype)).sum()

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        return self.experiment.validation(cast(Learner, module).student, (self.experiment.target,))


def run(experiment: Experiment, ensemble: Ensemble) -> list[dict[str, Any]]:
    """Distil, or take up the result of an earlier run; the experiment's student holds the selected weights afterwards.

    Returns:
        The stage's figures per epoch.
    """
    settings = experiment.recipe.distill
    found = experiment.result(NAME)
    if found is None:
        stage = Distill(experiment, ensemble)
        experiment.screen.say(f"teacher logits {stage.teachers.about}")
        if stage.unmasked is not None:
            experiment.screen.say(f"the router reads {stage.unmasked.source.about}")
        varied = (experiment.target,)
        loader = experiment.feeds.loader("train", stage.modalities, settings, shuffle=True, varied=varied)
        found = experiment.train(stage, loader, settings, {"teacher_logits": stage.teachers.about})
    load_state(experiment.student, part(found.state, "student"))
    return found.history
