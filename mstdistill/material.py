"""What a recipe's run is made of: a task, its instances, and networks that each see modalities through their views.

A view is a modality as a network takes it: its plain name for prepared tensors, `modality@processor` for what a Hugging
Face processor makes of raw data. Recipes, tables and tasks speak of modalities; batches hold views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .backbones.catalogue import build
from .config import ModelSettings, Recipe, TeacherSettings
from .data.decode.processors import Port, Processing
from .data.given_logits import view_of
from .data.keyed_logits import LogitsFile, with_logits
from .data.prepared.views import View, form_of, make_view, open_views
from .data.sources.own import TASK as OWN
from .data.sources.own import OwnData, open_own
from .data.sources.published import open_splits
from .data.sources.registry import find_task
from .data.split import Split
from .data.task import Task
from .engine.progress import Screen
from .engine.seeding import initialising
from .errors import ConfigError, nearest
from .teachers.given import Given
from .teachers.tap import Teacher
from .weights import load_weights


@dataclass
class Sight:
    """A network of the recipe and what it sees."""

    name: str
    settings: ModelSettings
    modalities: tuple[str, ...]
    views: tuple[View, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in a batch."""
        return tuple(view.name for view in self.views) or self.modalities


class Material:
    """Task, instances and networks of a recipe.

    Attributes:
        task: resolved: a user's own data have their modalities and classes by now.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data: OwnData | None = None
        self.task: Task = find_task(recipe.task)
        if recipe.task == OWN.name:
            self.data = open_own(recipe.data)
            self.task = self.data.task
        elif recipe.data.key is not None:
            raise ConfigError(
                f"data.key: instances of task {self.task.name} have names of their own or none; leave it out"
            )
        elif recipe.data.several:
            raise ConfigError(f"data.multilabel: an instance of task {self.task.name} has one class; leave it out")
        self._check_modalities()
        pairing = recipe.pairing
        self.student = self._sight("student", pairing.student, (recipe.target,))
        self.teachers = [self._teacher(t) for t in pairing.teachers]
        self._splits: dict[str, Split] | None = None
        if self.data is not None:
            shapes = {view.name: view.column.shape for sight in self._sights() for view in sight.views}
            forms = {view.name: form_of(view) for sight in self._sights() for view in sight.views}
            self.task = replace(self.task, modalities={**self.task.modalities, **shapes}, forms=forms)

    @property
    def target(self) -> str:
        """The student's view."""
        return self.student.names[0]

    @property
    def nameless(self) -> str:
        """Why nothing names the instances, where nothing does, and the mend."""
        order = "by the order of rows (.safetensors, .npy)"
        if self.data is None:
            return f"nothing names the instances of {self.task.name}: only logits {order} fit them"
        return f"nothing names the instances: data.key=COLUMN says which column does; else logits go {order}"

    @property
    def maker(self) -> dict[str, Any]:
        """How the student is built again from its exported folder."""
        settings = self.student.settings
        # the folder holds trained weights: it needs no file to start from, which may be gone by then
        options = {name: value for name, value in settings.options.items() if name != "imagenet"}
        return {"backbone": settings.backbone, "options": options, "hf": settings.hf, "pretrained": settings.pretrained}

    def splits(self, screen: Screen) -> dict[str, Split]:
        """The instances; a user's own data are prepared on first use."""
        if self._splits is None:
            data = self.recipe.data
            if self.data is None:
                self._splits = open_splits(
                    self.task, data.dir, group=data.group, limit=data.limit, split=data.split, indices=data.indices
                )
            else:
                views = [view for sight in self._sights() for view in sight.views]
                self._splits = open_views(
                    self.data, views, group=data.group, limit=data.limit, split=data.split, screen=screen,
                    max_broken=data.max_broken, indices=data.indices,
                )  # fmt: skip
            files = [LogitsFile(t.name, t.logits, t.key) for t in self.recipe.pairing.teachers
                     if t.logits is not None and self._filed(t)]  # fmt: skip
            if files:
                self._splits = with_logits(self._splits, files, self.task, self.nameless, screen.say)
        return self._splits

    def networks(self, screen: Screen) -> tuple[nn.Module, list[Teacher]]:
        """Student and teachers, each initialised from its own named seed."""
        student = self._network(self.student, screen)
        teachers = [
            Teacher(
                t.name,
                Given() if t.logits else self._network(sight, screen, t.frozen),
                sight.names,
                tuple(t.taps),
                t.frozen or t.logits is not None,
                missing=t.missing,
                modality_dropout=t.modality_dropout,
            )
            for t, sight in zip(self.recipe.pairing.teachers, self.teachers, strict=True)
        ]
        return student, teachers

    def _sights(self) -> list[Sight]:
        return [self.student, *self.teachers]

    def _filed(self, teacher: TeacherSettings) -> bool:
        """Whether it is a file of logits."""
        return teacher.logits is not None and teacher.logits not in self.task.modalities

    def _teacher(self, settings: TeacherSettings) -> Sight:
        if self._filed(settings):
            return Sight(settings.name, settings, (view_of(settings.name),))
        seen = tuple(settings.modalities) if settings.logits is None else (settings.logits,)
        return self._sight(settings.name, settings, seen)

    def _check_modalities(self) -> None:
        recipe, known = self.recipe, self.task.modalities
        name = self.task.name if self.data is None else self.task.title
        if recipe.target not in known:
            raise ConfigError(f"target {recipe.target!r}: {name} has no such modality; "
                              f"{nearest(recipe.target, known)}")  # fmt: skip
        for teacher in recipe.pairing.teachers:
            for modality in teacher.modalities:
                if modality not in known:
                    raise ConfigError(
                        f"teacher {teacher.name!r}: {name} has no modality {modality!r}; {nearest(modality, known)}"
                    )

    def _sight(self, name: str, settings: ModelSettings, modalities: tuple[str, ...]) -> Sight:
        if self.data is None:
            return Sight(name, settings, modalities)
        views = tuple(
            make_view(self.data, m, processing_of(settings, self.data.kinds[m], _called(name)), _called(name))
            for m in modalities
        )
        return Sight(name, settings, modalities, views)

    def _network(self, sight: Sight, screen: Screen, frozen: bool = False) -> nn.Module:
        settings, owner = sight.settings, _called(sight.name)
        module: nn.Module
        with initialising(self.recipe.seed, sight.name):
            if settings.backbone is not None:
                module = build(settings.backbone, self.task.num_classes, **settings.options)
            else:
                from .backbones.pretrained import build_pretrained

                processing = [view.processing for view in sight.views] or [None]
                ports = self._ports(sight, screen)
                module = build_pretrained(settings, self.task.num_classes, processing, ports, owner, frozen)
                for note in module.notes:
                    screen.say(note)
        if settings.weights:
            load_weights(module, settings.weights, sight.name)
        module.wants_compile = settings.compile  # type: ignore[assignment]  # see Experiment
        return module

    def _ports(self, sight: Sight, screen: Screen) -> Sequence[Port]:
        if sight.views:
            return [view.port for view in sight.views]
        if len(sight.modalities) > 1:
            raise ConfigError(
                f"{_called(sight.name)}: prepared data hold tensors, of which a Hugging Face model takes one; give one "
                "modality, or raw data (task: own)"
            )
        import numpy as np

        sample, _ = self.splits(screen)["train"].fetch(np.arange(1), sight.modalities)
        return [Port("array", ("main",), tuple(sample[sight.modalities[0]].shape[1:]))]


def processing_of(settings: ModelSettings, kind: str, owner: str) -> Processing | None:
    """The processor of a model for a modality of this kind; None where there is nothing to process."""
    if settings.hf is None or kind == "array":
        return None
    source = settings.processor or settings.hf
    return Processing(
        kind, source, owner,
        revision=None if settings.processor else settings.revision,
        trust_remote_code=settings.trust_remote_code,
        max_length=settings.max_length if kind == "text" else None,
        max_seconds=settings.max_seconds,
    )  # fmt: skip


def _called(name: str) -> str:
    return name if name == "student" else f"teacher {name!r}"
