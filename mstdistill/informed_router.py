"""Routers that read what teachers say beside what the student sees. They exist in training alone: a student that is
used has no teachers, and no router either."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routing import DenseRouter, Router


class InformedRouter(nn.Module):
    """From the student's logits [B, C] and the teachers' probabilities [B, T, C] to router logits [B, M].

    Two Linears with a ReLU between: whether teachers agree is no linear function of what each says.
    """

    def __init__(self, num_classes: int, num_teachers: int, num_members: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear((1 + num_teachers) * num_classes, 2 * num_classes)
        self.fc2 = nn.Linear(2 * num_classes, num_members)

    def forward(self, logits: Tensor, said: Tensor) -> Tensor:
        scores: Tensor = self.fc2(F.relu(self.fc1(joined(logits, said))))
        return scores


class InformedDenseRouter(DenseRouter):
    """From the student's logits [B, C, H, W] and the teachers' probabilities [B, T, C, H, W], as further channels, to
    router logits [B, M]; as wide inside as the router that reads the student alone."""

    def __init__(self, num_classes: int, num_teachers: int, num_members: int) -> None:
        super().__init__(num_classes, num_members)
        self.conv_point = nn.Conv2d((1 + num_teachers) * num_classes, 2 * num_classes, 1)

    def forward(self, logits: Tensor, said: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(joined(logits, said))


def joined(logits: Tensor, said: Tensor) -> Tensor:
    """The student's logits [B, C, ...] with what T teachers say [B, T, C, ...] along the classes: [B, C + T C, ...]."""
    return torch.cat([logits, said.flatten(1, 2).to(logits.dtype)], dim=1)


def probabilities(logits: Tensor, seen: Tensor | None, several: bool) -> Tensor:
    """What teachers' logits [B, T, C, ...] say, in their type: probabilities of the classes, of each class by itself
    where an instance may have `several`; zeros of a teacher that can't see an instance, by `seen` [B, T]."""
    said = logits.sigmoid() if several else logits.softmax(dim=2)
    return said if seen is None else said.masked_fill(~seen.view(*seen.shape, *(1,) * (said.dim() - 2)), 0.0)


def router_for(reads: str, dense: bool, num_classes: int, num_teachers: int, num_members: int) -> nn.Module:
    """The router of a recipe's `routing.reads`, with first weights from torch's generator."""
    if reads == "teachers":
        return (InformedDenseRouter if dense else InformedRouter)(num_classes, num_teachers, num_members)
    return (DenseRouter if dense else Router)(num_classes, num_members)
