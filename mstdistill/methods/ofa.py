"""OFA-KD: features of any architecture become logits and learn there from the teacher (Hao et al., NeurIPS 2023).

With p the teacher's distribution, h the one-hot label and q_j branch j's:

    L = mean over branches of -sum_c ((p_c + h_c)^eps - h_c) log q_jc,   loss = (1 - alpha) CE + alpha L

A branch is a projector from one of the student's hidden features to logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Settings
from ..experiment import Experiment
from ..teachers.feature import Feature
from .baseline import Baseline, Seen, true_class
from .comparison import compare
from .mst import Outcome
from .separable import Depthwise, Pointwise

BRANCHES = 3


def ofa_rows(
    student: Tensor, teacher: Tensor, label: Tensor, eps: float, temperature: float, ignore_index: int | None = None
) -> Tensor:
    """[B] loss of one branch (paper, equation 8) from logits [B, C]; 0 where the label doesn't count."""
    target, counts = true_class(label, student.shape[1], ignore_index)
    log_q = (student / temperature).log_softmax(dim=1)
    own = target.to(log_q.dtype)
    p = (teacher.to(log_q.dtype) / temperature).softmax(dim=1)
    return -(((p + own) ** eps - own) * log_q).sum(dim=1) * counts


class SeparableBlock(nn.Module):
    """[B, a, H, W] -> [B, b, H/2, W/2]: two depthwise-separable convolutions, the first of stride 2."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            Depthwise(a, stride=2), Pointwise(a, a), nn.BatchNorm2d(a), nn.ReLU(),
            Depthwise(a), Pointwise(a, b), nn.BatchNorm2d(b), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.op(x)
        return maps


class Projector(nn.Module):
    """A student feature, [B, d] or [B, c, H, W], to logits [B, C]."""

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        wide = 2 * num_classes
        if len(shape) == 1:
            self.blks = nn.Sequential(nn.Linear(shape[0], wide), nn.ReLU(), nn.Linear(wide, num_classes))
        else:
            self.blks = nn.Sequential(
                SeparableBlock(shape[0], 2 * shape[0]), SeparableBlock(2 * shape[0], wide),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes),
            )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.blks(x)
        return logits


class Branches(nn.Module):
    """A projector for each of the student's features."""

    def __init__(self, shapes: Sequence[Sequence[int]], num_classes: int) -> None:
        super().__init__()
        self.projectors = nn.ModuleList([Projector(shape, num_classes) for shape in shapes])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"branch{i}": one(x) for i, (one, x) in enumerate(zip(self.projectors, student, strict=True))}


class Ofa(Baseline):
    """Features in the space of logits; classification."""

    class Options(Settings):
        eps: float = Field(1.1, ge=1, description="how much a teacher that is sure of the label counts")
        temperature: float = Field(1.0, gt=0, description="instead of the recipe's")

    name = "ofa"
    one_class = "it looks for the one true class of an instance"
    not_dense = "its branches project features to one vector of logits per instance"
    options: Options

    def build(self) -> None:
        hidden = [Feature(name) for name in self.layers(None)[:-1]][-BRANCHES:]
        self.student_features = self.chosen(None) or hidden or [Feature(self.layers(None)[-1], incoming=True)]
        shapes = self.shapes(None, self.student_features)
        self.modules = self.new("projectors", lambda: Branches(shapes, self.experiment.task.num_classes))

    def distillation(self, seen: Seen) -> Tensor:
        own, ignore = self.options, self.experiment.task.ignore_index
        rows = [ofa_rows(branch, seen.teacher, seen.batch.label, own.eps, own.temperature, ignore)
                for branch in seen.parts.values()]  # fmt: skip
        return seen.batch.mean(torch.stack(rows).mean(dim=0))


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Ofa)
