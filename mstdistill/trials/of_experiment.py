"""An experiment's networks tried before the first step: what they answer, what learns in them, where masks sit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..engine.launch import expect_unused
from ..errors import ConfigError
from ..sections.learning import OptimSettings
from ..teachers.mask import MaskPlan, plan_mask
from ..teachers.tap import Teacher, discover
from . import of_network
from .of_network import Network

if TYPE_CHECKING:
    from ..experiment import Experiment


def dry_run(experiment: Experiment) -> bool:
    """One batch through every network: finds wrong modalities and shapes; returns whether logits are maps."""
    networks = experiment.tried
    logits = [of_network.answer(one, experiment.first_batch(one.view).inputs, experiment.task.num_classes,
                                experiment.recipe.seed) for one in networks]  # fmt: skip
    for one in networks:
        of_network.check_state(one)
    return logits[0].dim() == 4


def every_network(experiment: Experiment) -> None:
    """See `of_network`: every network in evaluation, what the recipe trains in training, masks by their gradients."""
    recipe, mixture = experiment.recipe, experiment.recipe.method == "mst"
    rows = min(of_network.shortest(len(split), recipe.batch_size) for split in experiment.splits.values())
    for one in experiment.tried:
        of_network.check_numbers(one, experiment.first_batch(one.view, rows).inputs, experiment.accelerator.autocast)
    rounds = [recipe.each_round] if recipe.rounds.count else []
    experiment.try_training(None, [recipe.cotrain, *rounds, recipe.distill] if mixture else [recipe.distill])
    for teacher in [*experiment.teachers] if mixture else ():
        experiment.try_training(teacher, [recipe.cotrain, *rounds])
        if teacher.taps and recipe.specialise.epochs:
            network = Network.teacher(teacher.name, teacher.module, teacher.modalities)
            of_network.check_taps(network, teacher.taps, experiment.first_batch(teacher.modalities, rows).inputs)


def training(experiment: Experiment, teacher: Teacher | None, stages: Sequence[OptimSettings]) -> None:
    """See `Experiment.try_training`."""
    recipe = experiment.recipe
    sizes = [stage.batch_size or recipe.batch_size for stage in stages if stage.epochs]
    if not sizes or (teacher is not None and teacher.frozen):
        return
    network = experiment.tried[0]
    if teacher is not None:
        network = Network.teacher(teacher.name, teacher.module, teacher.modalities)
    count = len(experiment.splits["train"])
    rows = min(of_network.shortest(count, size) for size in sizes)
    note = f"a batch of {rows} (the shortest of {count:,} instances in batches of {', '.join(map(str, sizes))})"
    batch = experiment.first_batch(network.view, rows)
    reached = of_network.learns(
        network, batch.inputs, experiment.task.num_classes, experiment.accelerator.autocast, note
    )
    if reached < {name for name, p in network.module.named_parameters() if p.requires_grad}:
        expect_unused(experiment.accelerator)
    if reached:
        return
    if teacher is None:
        raise ConfigError("student: no parameter gets a gradient of the logits; is it frozen, its forward under "
                          "no_grad, or its output detached?")  # fmt: skip
    experiment.screen.say(f"teacher {teacher.name}: nothing in it learns (frozen, under no_grad, detached, or without "
                          "parameters); it is used as it is, as with frozen=True")  # fmt: skip
    experiment.teachers[experiment.teachers.index(teacher)] = replace(teacher, frozen=True)


def plan_masks(experiment: Experiment) -> list[list[MaskPlan]]:
    """A mask for each tap of each teacher, from the shapes that a dry run finds."""
    settings = experiment.recipe.mask
    plans = []
    for teacher in experiment.teachers:
        if not settings.enabled:
            teacher.taps = ()
        calls: dict[str, int] = {}
        shapes = discover(
            teacher.module, experiment.first_batch(teacher.modalities).inputs, teacher.modalities, teacher.taps,
            f"teacher {teacher.name!r}", calls,
        )  # fmt: skip
        plans.append([
            replace(plan_mask(tap, shapes[tap], settings.heads, settings.hidden_dim_factor, settings.hidden,
                              settings.max_parameters), calls=calls[tap])
            for tap in teacher.taps
        ])  # fmt: skip
    return plans
