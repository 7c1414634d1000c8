"""A finished run's networks, asked about one instance: a person's, or one of the page's split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.view import modality_of
from ..engine.progress import Screen
from ..errors import ConfigError
from ..pipeline import load_run
from ..report.figures import networks_of
from ..report.gain import DISTILLED
from ..report.known import page_split
from ..student import Student
from ..teachers.tap import call, freeze
from .raw import decoded, readers, seen
from .tiles import tile

# Instances to click: the first of each class, so many classes.
SAMPLES = 10

Answer = dict[str, float]


@dataclass(frozen=True)
class Network:
    """A network on the page.

    Attributes:
        views: what it sees, in order.
    """

    title: str
    module: nn.Module
    views: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """An instance to click.

    Attributes:
        picture: of all its modalities, PIL.
    """

    title: str
    picture: Any
    inputs: Mapping[str, Tensor]


class Asking:
    """A run's networks and how they are asked.

    Attributes:
        kinds: what a person can give, modality -> kind, the student's first.
        networks: the distilled student first, then the student alone, then teachers that see nothing else.

    Raises:
        MstdistillError: no run that can be tried; in one line.
    """

    def __init__(self, run: Path) -> None:
        experiment, material = load_run(run, Screen(quiet=True))
        if experiment.dense:
            raise ConfigError(f"task {experiment.task.name}: its answers are maps, not classes; there is no demo of it")
        self.kinds, self._readers = readers(material)
        self.device, self.several = experiment.accelerator.device, experiment.task.multilabel
        name = experiment.task.name if material.data is None else experiment.task.title
        self.title = f"{name}: a student that sees {modality_of(experiment.target)}"
        count = experiment.task.num_classes
        self.classes = list(experiment.task.class_names) or [str(i) for i in range(count)]
        student = Student.from_pretrained(run / "student").to(self.device)
        found = networks_of(experiment, student.module, with_alone=True)
        found = {DISTILLED: found.pop(DISTILLED), **found}
        self.networks = [Network(_titled(name, views), freeze(module), views) for name, (module, views) in found.items()
                         if set(views) <= set(self._readers)]  # fmt: skip
        self.samples = self._samples(experiment.splits[page_split(experiment)]) if material.data is None else []

    def answer(self, values: Mapping[str, Any]) -> list[Answer | None]:
        """What each network says of what the page gives, by modality; None: it sees something that wasn't given.

        Raises:
            DataError: something given can't be read.
            ConfigError: nothing was given.
        """
        given = {name: raw for name, kind in self.kinds.items()
                 if (raw := decoded(kind, values[name], name)) is not None}  # fmt: skip
        if not given:
            raise ConfigError("nothing given yet: draw, record, type or drop something, then ask")
        views = tuple(view for network in self.networks for view in network.views)
        made = seen(self._readers, given, views)
        return self.told({name: torch.from_numpy(np.asarray(array))[None] for name, array in made.items()})

    @torch.no_grad()
    def told(self, inputs: Mapping[str, Tensor]) -> list[Answer | None]:
        """What each network says of an instance's views [1, ...]."""
        here = {name: x.to(self.device) for name, x in inputs.items()}
        return [self._said(network, here) if set(network.views) <= set(here) else None for network in self.networks]

    def _said(self, network: Network, inputs: Mapping[str, Tensor]) -> Answer:
        logits = call(network.module, inputs, network.views)[0].float()
        shares = logits.sigmoid() if self.several else logits.softmax(dim=0)
        return dict(zip(self.classes, shares.tolist(), strict=True))

    def _samples(self, split: Any) -> list[Sample]:
        views = [view for view in self.kinds if any(view in network.views for network in self.networks)]
        inputs, label = split.fetch(np.arange(len(split)), [])
        if label.dim() != 1:
            return []
        firsts = [int(found[0]) for c in range(min(SAMPLES, len(self.classes)))
                  if len(found := (label == c).nonzero()[:, 0])]  # fmt: skip
        if not firsts:
            return []
        inputs, _ = split.fetch(np.array(firsts), views)
        return [
            Sample(f"{self.classes[int(label[position])]} (instance {position})",
                   tile([(self.kinds[view], inputs[view][at].numpy()) for view in views]),
                   {view: inputs[view][at : at + 1] for view in views})
            for at, position in enumerate(firsts)
        ]  # fmt: skip


def _titled(name: str, views: tuple[str, ...]) -> str:
    return f"{name} ({' + '.join(map(modality_of, views))})"
