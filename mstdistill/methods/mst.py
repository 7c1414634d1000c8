"""MST-Distill: the three stages in a row (paper, algorithm 1); between the first two, rounds of self-training, and the
folds of a router that reads teachers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..experiment import Experiment
from ..stages import cotrain, distill, folds, rounds, specialise

STAGES = (cotrain.NAME, specialise.NAME, distill.NAME)


@dataclass
class Outcome:
    """What a method leaves behind, beside the experiment's trained networks.

    Attributes:
        finished: false where the recipe stopped it after an earlier stage.
        shares: each specialised teacher's part in the last epoch; they add up to 1.
    """

    finished: bool
    shares: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def run(experiment: Experiment) -> Outcome:
    """Train the experiment's student; each stage resumes, and is skipped where its result is there."""
    stop = experiment.recipe.run.stop_after
    first, of_folds = rounds.first_states(experiment), folds.first_states(experiment)
    cotrain.run(experiment)
    if stop != cotrain.NAME:
        rounds.run(experiment, first)
    experiment.judge_teachers()
    if stop == cotrain.NAME:
        return Outcome(finished=False)
    if stop != specialise.NAME:  # before the teachers are frozen for good
        folds.run(experiment, of_folds)
    ensemble = specialise.run(experiment)
    if stop == specialise.NAME:
        return Outcome(finished=False)
    history = distill.run(experiment, ensemble)
    last = history[-1].get("train/share", []) if history else []
    return Outcome(True, dict(zip(ensemble.names, last, strict=False)), history)
