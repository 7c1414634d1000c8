"""What the comparison's methods share: one small interface, their settings, and how losses count over a global batch.

A method says which features it looks at, which modules of its own learn beside the student, and its loss; the stages do
the rest (`distillation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from .. import ranks
from ..config import Settings
from ..data.feeding.batch import Batch
from ..engine.seeding import initialising
from ..errors import ConfigError, nearest
from ..experiment import Experiment
from ..sight import sees_all
from ..stages.knowledge import Knowledge
from ..teachers.feature import Feature, layers, shapes
from ..teachers.tap import Teacher

Shape = tuple[int, ...]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Seen:
    """What a method's loss sees of a micro-batch.

    Attributes:
        student: logits [B, C] or [B, C, H, W].
        teachers: logits [B, M, C, ...]; without gradient unless the teacher learns too.
        parts: what the method's modules made of the features.
        taught: [B, M] which teachers see an instance; None: all.
    """

    batch: Batch
    epoch: int
    student: Tensor
    teachers: Tensor | None
    parts: Mapping[str, Tensor]
    taught: Tensor | None = None

    @property
    def teacher(self) -> Tensor:
        """The first (mostly the only) teacher's logits."""
        assert self.teachers is not None
        return self.teachers[:, 0]


class Baseline:
    """A method of the comparison.

    Attributes:
        name: as the recipe calls it.
        taught_by: "one" (`baseline.teacher` says which), "all" or "nobody".
        not_dense: why it can't run dense tasks; empty: it can.
        one_class: why it can't run tasks of several classes at once; empty: it can.
        needs_labels: why it needs a label of every instance; empty: it doesn't.
        not_mixed: why it can't learn from mixed instances, where its loss doesn't look at features; empty: it can.
        needs_all_seen: why its teacher must see every instance; empty: it needn't, and others add nothing to its loss.
        reads_logits: whether it looks at the teachers' logits.
        teacher_learns: whether the teacher trains with the student in its last stage.
        trains_teacher: whether any stage after the teacher's own trains it.
        student_features, teacher_features: what it looks at.
        modules: what learns beside the student: called with the lists of student's and teacher's features, it gives
            named tensors; None: nothing.

    Args:
        teachers: those that teach.

    Raises:
        ConfigError: settings or a task that it can't work with.
    """

    name: ClassVar[str]
    taught_by: ClassVar[str] = "one"
    not_dense: ClassVar[str] = ""
    one_class: ClassVar[str] = ""
    needs_labels: ClassVar[str] = ""
    not_mixed: ClassVar[str] = ""
    needs_all_seen: ClassVar[str] = ""
    reads_logits: ClassVar[bool] = True
    teacher_learns: ClassVar[bool] = False
    trains_teacher: ClassVar[bool] = False
    Options: ClassVar[type[Settings]] = Settings

    def __init__(self, experiment: Experiment, teachers: Sequence[Teacher]) -> None:
        self.experiment, self.teachers, self.settings = experiment, list(teachers), experiment.recipe.baseline
        self.options = options_of(type(self), self.settings.options)
        if self.not_dense and experiment.dense:
            raise ConfigError(f"method {self.name} can't run a dense task: {self.not_dense}")
        if self.one_class and experiment.task.multilabel:
            raise ConfigError(f"method {self.name} can't run a multi-label task: {self.one_class}")
        if self.trains_teacher and self.teachers[0].frozen:
            raise ConfigError(f"method {self.name} trains its teacher, and {self.teachers[0].name!r} is frozen")
        if self.needs_labels and experiment.partly_labelled:
            raise ConfigError(f"method {self.name} can't learn from instances without a label: {self.needs_labels}")
        unseen = [teacher.name for teacher in self.teachers if not sees_all(teacher, experiment.splits["train"])]
        if self.needs_all_seen and unseen:
            raise ConfigError(f"method {self.name} needs a teacher that sees every instance, and {unseen[0]!r} lacks "
                              f"modalities of some: {self.needs_all_seen}")  # fmt: skip
        self.temperature = experiment.recipe.temperature
        self._learn = {t.name: {n for n, p in t.module.named_parameters() if p.requires_grad} for t in self.teachers}
        self.student_features: list[Feature] = []
        self.teacher_features: list[Feature] = []
        self.modules: nn.Module | None = None
        self.build()
        looks = self.student_features or self.teacher_features
        why = self.not_mixed or ("it learns from features, which aren't mixed as labels are" if looks else "")
        if why and experiment.recipe.augment.mixup is not None:
            raise ConfigError(f"method {self.name} can't learn by augment.mixup: {why}")

    def build(self) -> None:
        """Choose features and make modules."""

    def prepare(self) -> None:
        """Stages between the teachers' training and the student's."""

    def knowledge(self) -> Knowledge | None:
        """What the stage gets from teachers that don't learn."""
        if self.teacher_learns or not self.teachers:
            return None
        return Knowledge(self.experiment, self.teachers, self.teacher_features, logits=self.reads_logits)

    def alpha(self, epoch: int) -> float:
        """The distillation's part of the loss in an epoch (from 0)."""
        decay = self.settings.alpha_decay
        return self.settings.alpha * decay.factor ** (epoch // decay.every)

    def distillation(self, seen: Seen) -> Tensor:
        """The distillation loss of a micro-batch, averaged over the global batch."""
        raise NotImplementedError("a method says what its distillation loss is, or its whole objective")

    def objective(self, seen: Seen) -> dict[str, Tensor]:
        """`loss`, which is minimised, and its parts."""
        task = self.experiment.objective.task(seen.student, seen.batch)
        if not self.teachers:
            return {"loss": task}
        distillation, alpha = self.distillation(self._of_taught(seen)), self.alpha(seen.epoch)
        return {"loss": (1 - alpha) * task + alpha * distillation, "task": task, "distillation": distillation}

    def _of_taught(self, seen: Seen) -> Seen:
        """The same, of which instances that no teacher sees don't count."""
        if not seen.batch.present:
            return seen
        there = [teacher.sees(seen.batch.present) for teacher in self.teachers]
        if all(x is None for x in there):
            return seen
        every = torch.ones_like(seen.batch.weight, dtype=torch.bool)
        taught = torch.stack([every if x is None else x for x in there], dim=1)
        batch = replace(seen.batch, weight=seen.batch.weight * taught.any(dim=1))
        return replace(seen, batch=batch, taught=taught)

    # what subclasses build with

    def thaw(self, teacher: Teacher) -> None:
        """Let a teacher learn again what it could learn at the start."""
        for name, parameter in teacher.module.named_parameters():
            parameter.requires_grad_(name in self._learn[teacher.name])

    def new(self, name: str, make: Callable[[], M]) -> M:
        """A module with a random start of its own named seed, in the networks' type, on their device."""
        first = next(self.experiment.student.parameters())
        with initialising(self.experiment.recipe.seed, self.name, name):
            module = make()
        return self.experiment.placed(module.to(dtype=first.dtype))

    def look_at_penultimate(self) -> tuple[list[Shape], list[Shape]]:
        """Look at one feature of each side: the taps of the settings, else what the last layer takes in.

        Returns:
            Shapes without the batch, the student's and the teacher's.
        """
        self.student_features = self.chosen(None, 1) or [Feature(self.layers(None)[-1], incoming=True)]
        self.teacher_features = self.chosen(self.teachers[0], 1) or [
            Feature(self.layers(self.teachers[0])[-1], incoming=True)
        ]
        return self.shapes(None, self.student_features), self.shapes(self.teachers[0], self.teacher_features)

    def chosen(self, teacher: Teacher | None, count: int | None = None) -> list[Feature]:
        """The features that the settings name for the student (None) or a teacher; empty: none.

        Raises:
            ConfigError: another number than the method takes.
        """
        taps = self.settings.teacher_taps if teacher else self.settings.student_taps
        if taps and count is not None and len(taps) != count:
            side = "teacher" if teacher else "student"
            raise ConfigError(f"baseline.{side}_taps: method {self.name} takes {count}, {len(taps)} given")
        return [Feature(tap) for tap in taps]

    def layers(self, teacher: Teacher | None) -> list[str]:
        """Layers of the student (None) or a teacher in the order in which they run; the last one classifies."""
        return layers(*self._side(teacher))

    def shapes(self, teacher: Teacher | None, features: Sequence[Feature]) -> list[Shape]:
        """Shapes of features, without the batch."""
        module, inputs, view, owner = self._side(teacher)
        return shapes(module, inputs, view, features, owner)

    def _side(self, teacher: Teacher | None) -> tuple[nn.Module, dict[str, Tensor], Sequence[str], str]:
        experiment = self.experiment
        module, view = (teacher.module, teacher.modalities) if teacher else (experiment.student, (experiment.target,))
        batch = experiment.first_batch(view, 2)
        return module, batch.inputs, view, f"teacher {teacher.name!r}" if teacher else "student"


def options_of(method: type[Baseline], given: Mapping[str, Any]) -> Any:
    """A method's own numbers from the recipe's `baseline.options`.

    Raises:
        ConfigError: unknown ones, or values of the wrong kind.
    """
    known = method.Options.model_fields
    for key in given:
        if key not in known:
            raise ConfigError(f"baseline.options: method {method.name} has no option {key!r}; {nearest(key, known)}")
    try:
        return method.Options.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where, problem = ".".join(map(str, first["loc"])), first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"baseline.options.{where}={first['input']!r}: {problem}") from None


def relational(batch: Batch, loss: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A loss over the relations between the instances of a micro-batch, all processes' ones.

    It counts by its instances, so that equal parts of an optimiser's step weigh the same.

    Args:
        loss: from tensors [B, ...] to a scalar.
    """
    return loss(*(ranks.rows_of_all(x, round(batch.instances)) for x in tensors)) * batch.share


def true_class(label: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Where the label's class is.

    Args:
        label: [B] or [B, H, W] int64.

    Returns:
        Masks [B, C, ...], true at the class of the label (nowhere for a label out of range), and [B, ...], false for
        labels that don't count.
    """
    classes = torch.arange(num_classes, device=label.device).view(-1, *(1,) * (label.dim() - 1))
    counts = (label >= 0) & (label < num_classes)
    if ignore_index is not None:
        counts &= label != ignore_index
    return label.unsqueeze(1) == classes, counts


def mean_over_pixels(values: Tensor, counts: Tensor) -> Tensor:
    """[B] of values [B] or [B, H, W]: those that count, averaged over the pixels."""
    values = values * counts
    if values.dim() == 1:
        return values
    return values.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)
