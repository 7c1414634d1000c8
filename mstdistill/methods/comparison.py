"""From an experiment and a method of the comparison to a trained student: teachers alone, pre-stages, the student."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from ..experiment import Experiment
from ..stages import baseline, teacher
from ..teachers.tap import Teacher
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
    if stop not in (None, baseline.NAME):
        raise ConfigError(f"run.stop_after={stop}: method {method.name} has no such stage; leave it out")
    experiment.teachers = _teachers(experiment, method)
    chosen = method(experiment, experiment.teachers)
    for one in experiment.teachers:
        teacher.run(experiment, one)
    chosen.prepare()
    return Outcome(True, {}, baseline.run(experiment, chosen))


def _teachers(experiment: Experiment, method: type[Baseline]) -> list[Teacher]:
    """Those that teach: none, all, or the one that the settings ask for."""
    if method.taught_by == "nobody":
        return []
    if method.taught_by == "all":
        return experiment.teachers
    wanted, known = experiment.recipe.baseline.teacher, experiment.teachers
    found = [one for one in known if one.name == wanted] or [
        one for one in known if one.kind(experiment.target) == wanted
    ]
    names = [one.name for one in known]
    if len(found) > 1:
        raise ConfigError(f"baseline.teacher={wanted}: {', '.join(one.name for one in found)} are; give a name")
    if not found and wanted in KINDS:
        raise ConfigError(f"baseline.teacher={wanted}: the recipe has no such teacher; known: {', '.join(names)}")
    if not found:
        raise ConfigError(f"baseline.teacher={wanted!r} is unknown; {nearest(wanted, [*KINDS, *names])}")
    return found
