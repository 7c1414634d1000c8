"""From an experiment and a method of the comparison to a trained student: teachers alone, pre-stages, the student."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError, nearest
from ..experiment import Experiment
from ..stages import teacher
from ..teachers.tap import Teacher
from . import distillation
from .baseline import Baseline
from .mst import Outcome

KINDS = ("multimodal", "crossmodal")


def compare(experiment: Experiment, method: type[Baseline]) -> Outcome:
    """Train the experiment's student; each stage resumes, and is skipped where its result is there.

    Afterwards the experiment's teachers are those that taught, so that tables show no untrained bystander.

    Raises:
        ConfigError: a teacher, an option or a task that the method can't work with.
    """
    stop = experiment.recipe.run.stop_after
    if stop not in (None, distillation.NAME):
        raise ConfigError(f"run.stop_after={stop}: method {method.name} has no such stage; leave it out")
    experiment.teachers = _teachers(experiment, method)
    for one in [*experiment.teachers]:
        stages = [] if teacher.ready(experiment, one) else [teacher.settings_of(experiment.recipe)]
        experiment.try_training(one, [*stages, experiment.recipe.distill] if method.trains_teacher else stages)
    chosen = method(experiment, experiment.teachers)
    for one in experiment.teachers:
        teacher.run(experiment, one)
    chosen.prepare()
    return Outcome(True, {}, distillation.run(experiment, chosen))


def _teachers(experiment: Experiment, method: type[Baseline]) -> list[Teacher]:
    kinds = {teacher.name: teacher.kind(experiment.target) for teacher in experiment.teachers}
    wanted = chosen_teachers(method, experiment.recipe.baseline.teacher, kinds)
    return [teacher for teacher in experiment.teachers if teacher.name in wanted]


def chosen_teachers(method: type[Baseline], wanted: str, kinds: Mapping[str, str]) -> list[str]:
    """Names of those that teach: none, all, or the one that the settings ask for.

    Args:
        wanted: `baseline.teacher`: a kind or a name.
        kinds: of every teacher: "multimodal" or "crossmodal".

    Raises:
        ConfigError: no such teacher, or several of that kind.
    """
    if method.taught_by == "nobody":
        return []
    if method.taught_by == "all":
        return list(kinds)
    found = [wanted] if wanted in kinds else [name for name, kind in kinds.items() if kind == wanted]
    if len(found) > 1:
        raise ConfigError(f"baseline.teacher={wanted}: {', '.join(found)} are; give a name")
    if not found and wanted in KINDS:
        raise ConfigError(f"baseline.teacher={wanted}: the recipe has no such teacher; known: {', '.join(kinds)}")
    if not found:
        raise ConfigError(f"baseline.teacher={wanted!r} is unknown; {nearest(wanted, [*KINDS, *kinds])}")
    return found
