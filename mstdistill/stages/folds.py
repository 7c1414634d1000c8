"""Teachers that never saw a row's label: the co-training again, once a fold, with the fold's labels hidden.

What the run's own teachers say of a labelled row they have learned: they are right and sure there, and a router that
meets them there finds nobody to doubt. Of such a row it meets these instead. They teach nothing: what is distilled is
what the run's own teachers say. Rounds of self-training are not repeated. Teachers that don't learn in the run stay as
they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from ..data.labelled import LabelsHidden, PartlyLabelled, has_label, labels_of
from ..data.split import Split
from ..engine.seeding import named_seed
from ..errors import ConfigError, first_line
from ..experiment import Experiment
from ..state import load_state
from ..teachers.tap import Teacher, freeze
from ..weights import part
from . import cotrain, rounds


def stage_name(number: int) -> str:
    """Of a fold from 1: the stage's name and folder."""
    return f"fold-{number}"


def count(experiment: Experiment) -> int:
    """How many folds a run has: none where no teacher learns, whatever the recipe says."""
    return experiment.recipe.routing.folds if any(not t.frozen for t in experiment.teachers) else 0


def cut(experiment: Experiment) -> np.ndarray:
    """[N] which fold hides a training instance's label, from 1; 0 for instances without one.

    By the recipe's seed: each class goes evenly over the folds; labels that are maps or of several classes at random.

    Raises:
        ConfigError: more folds than labelled instances.
    """
    split, task = experiment.splits["train"], experiment.task
    folds, seed = experiment.recipe.routing.folds, named_seed(experiment.recipe.seed, "folds") % 2**32
    known = has_label(split, task.ignore_index)
    if folds > known.sum():
        raise ConfigError(f"routing.folds={folds}: each fold hides at least one label, and {int(known.sum())} training "
                          "instances have one; take fewer folds")  # fmt: skip
    kind = np.zeros(len(split), dtype=np.int64)
    if not experiment.dense and not task.multilabel:
        kind = labels_of(split)
    rows = [np.random.default_rng([seed, int(one), 0xF01D]).permutation(np.flatnonzero(known & (kind == one)))
            for one in np.unique(kind[known])]  # fmt: skip
    found = np.zeros(len(split), dtype=np.int64)
    # on from one class to the next: small ones would all lie in the first folds
    found[np.concatenate(rows)] = np.arange(known.sum()) % folds + 1
    return found


def first_states(experiment: Experiment) -> list[Mapping[str, Tensor]]:
    """The networks' weights before anything is trained, if folds begin with them.

    Raises:
        ConfigError: see `check`.
    """
    if not count(experiment):
        if experiment.recipe.routing.folds:
            experiment.screen.say("routing.folds: no teacher here learns from labels, so none is hidden")
        return []
    check(experiment)
    return cotrain.states(experiment)


def check(experiment: Experiment) -> None:
    """What folds can't do is refused, or said, before anything is trained.

    Raises:
        ConfigError: more folds than labelled instances, or a teacher that can't be copied.
    """
    if lost := _lost(experiment, cut(experiment)):
        names = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        experiment.screen.say(f"routing.folds={count(experiment)}: warning: one fold hides every label of class {names}"
                              ", of which its teachers learn nothing")  # fmt: skip
    for teacher in experiment.teachers:
        _twin(teacher)


def _lost(experiment: Experiment, folds: np.ndarray) -> list[int]:
    """Classes of which a fold hides every label; of maps nobody looks."""
    if experiment.dense:
        return []
    label = labels_of(experiment.splits["train"])
    found = []
    for number in range(experiment.task.num_classes):
        has = folds[(label[:, number] == 1 if label.ndim == 2 else label == number) & (folds > 0)]
        if len(has) and (has == has[0]).all():
            found.append(number)
    return found


@contextmanager
def hiding(experiment: Experiment, rows: np.ndarray) -> Iterator[None]:
    """Within the block these training instances [N] bool have no label; where the task has a class that doesn't count,
    it stands there."""
    whole, ignore = experiment.splits["train"], experiment.task.ignore_index
    hidden: Split
    if ignore is None or experiment.partly_labelled:
        hidden = PartlyLabelled(whole, getattr(whole, "labelled", np.ones(len(whole), dtype=bool)) & ~rows)
    else:
        hidden = LabelsHidden(whole, ~rows, ignore)
    experiment.splits["train"] = hidden
    try:
        yield
    finally:
        experiment.splits["train"] = whole


def run(experiment: Experiment, first: list[Mapping[str, Tensor]]) -> None:
    """Co-train without each fold's labels, or take up what is there; the experiment's networks are then as before.

    Args:
        first: see `first_states`.
    """
    number = count(experiment)
    missing = [fold for fold in range(1, number + 1) if experiment.result(stage_name(fold)) is None]
    if not missing:
        return
    folds = cut(experiment)
    for fold in missing:
        for module, state in zip(cotrain.cohort(experiment).members, first, strict=True):
            load_state(module, state)
        rows = folds == fold
        experiment.screen.say(f"fold {fold} of {number}: co-training without {int(rows.sum()):,} labels")
        with hiding(experiment, rows):
            cotrain.fitted(experiment, stage_name(fold))
    fit = rounds.latest(experiment)
    if fit is not None:
        load_state(cotrain.cohort(experiment), fit.state)


def teachers(experiment: Experiment) -> list[list[Teacher]]:
    """By fold, the teachers that never saw its labels, frozen; see `run`."""
    found = []
    for fold in range(1, count(experiment) + 1):
        fit = experiment.result(stage_name(fold))
        assert fit is not None
        own = []
        for number, teacher in enumerate(experiment.teachers):
            twin = _twin(teacher)
            if twin is not teacher:
                load_state(twin.module, part(fit.state, f"teachers.{number}"))
                freeze(twin.module)
            own.append(twin)
        found.append(own)
    return found


def _twin(teacher: Teacher) -> Teacher:
    """A copy of a teacher that learns, the teacher itself where it doesn't.

    Raises:
        ConfigError: it can't be copied.
    """
    if teacher.frozen:
        return teacher
    try:
        module: nn.Module = copy.deepcopy(teacher.module)
    except Exception as error:  # somebody keeps a handle, a lock or a tensor with a past in it
        raise ConfigError(f"teacher {teacher.name!r} can't be copied, as routing.folds wants ({first_line(error)}); "
                          "let it be copied, or set routing.folds=0") from None  # fmt: skip
    return replace(teacher, module=module)
