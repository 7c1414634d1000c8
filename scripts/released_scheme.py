"""The training scheme as released, for comparison: what `benchmark.py` measures this project against.

Stage 2 and 3 as method descriptions of the released code state them: masks by `nn.MultiheadAttention` with its full
attention weights and output projection, one teacher forward per mask, autograd on in the teachers, gradients into
teacher weights that nobody uses, logits detached afterwards, masks of one teacher stacked in stage 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mstdistill.kernels import kd_rows
from torch import Tensor, nn

from mstdistill.backbones.catalogue import build
from mstdistill.routing import Router
from mstdistill.teachers.mask import MaskNet1d, MaskNet2d

TEACHERS = {
    "image": [("CNN-I", ("image", "audio"), ("concat_identity", "fc1")),
              ("ThreeLayerCNN-A", ("audio",), ("conv2", "conv3"))],
    "audio": [("CNN-I", ("image", "audio"), ("concat_identity", "fc1")), ("LeNet5", ("image",), ("conv3", "fc1"))],
}  # fmt: skip
STUDENTS = {"image": "LeNet5", "audio": "ThreeLayerCNN-A"}
WIDTHS = {"concat_identity": 596, "conv2": 64}
SHAPES = {("CNN-I", "fc1"): 298, ("ThreeLayerCNN-A", "conv3"): 128, ("LeNet5", "conv3"): 120, ("LeNet5", "fc1"): 84}


class FullMask(nn.Module):
    """A mask module whose attention runs through `nn.MultiheadAttention`."""

    def __init__(self, core: MaskNet1d | MaskNet2d) -> None:
        super().__init__()
        self.core = core

    def forward(self, feature: Tensor) -> Tensor:
        core = self.core
        vector = core.spatial_reduce(feature) if isinstance(core, MaskNet2d) else feature.flatten(1)
        tokens = core.embed(vector).view(len(vector), core.width, core.hidden)
        attended, _ = core.mha(tokens, tokens, tokens)
        mask = torch.sigmoid(core.fc(attended)).squeeze(2)
        return feature * mask.view(*mask.shape, *(1,) * (feature.dim() - 2))


@dataclass
class Variant:
    """A teacher, a tap and its mask."""

    teacher: nn.Module
    view: tuple[str, ...]
    tap: str
    mask: FullMask


class Released:
    """Networks and steps of the released scheme for one target modality of AV-MNIST."""

    def __init__(self, target: str, hidden_dim_factor: int = 16) -> None:
        self.target = target
        self.student = build(STUDENTS[target], 10)
        self.router = Router(10, 4)
        self.teachers: list[tuple[nn.Module, tuple[str, ...]]] = []
        self.variants: list[Variant] = []
        for name, view, taps in TEACHERS[target]:
            teacher = build(name, 10)
            self.teachers.append((teacher, view))
            for tap in taps:
                width = SHAPES.get((name, tap)) or WIDTHS[tap]
                hidden = width // (hidden_dim_factor * 3) * 3 or 3
                flat = name != "ThreeLayerCNN-A"
                mask = FullMask((MaskNet1d if flat else MaskNet2d)(width, hidden, 3))
                self.variants.append(Variant(teacher, view, tap, mask))
        self.learner = torch.optim.Adam([*self.student.parameters(), *self.router.parameters()], 1e-4)
        self.masks = [torch.optim.Adam(v.mask.parameters(), 1e-4) for v in self.variants]
        everyone = [p for teacher, _ in self.teachers for p in teacher.parameters()]
        self.cohort = torch.optim.Adam([*everyone, *self.student.parameters()], 1e-4)

    def cotrain_step(self, inputs: dict[str, Tensor], label: Tensor) -> None:
        """Stage 1: three networks, every pair."""
        logits = [teacher(*[inputs[m] for m in view]) for teacher, view in self.teachers]
        logits.append(self.student(inputs[self.target]))
        loss = torch.zeros(())
        for i, own in enumerate(logits):
            loss = loss + F.cross_entropy(own, label)
            for j, other in enumerate(logits):
                if i != j:
                    loss = loss + kd_rows(own, other).mean()
        self.cohort.zero_grad()
        loss.backward()
        self.cohort.step()

    def specialise_step(self, inputs: dict[str, Tensor], label: Tensor) -> None:
        """Stage 2: each mask its own forward and backward through its whole teacher."""
        reference = self.student(inputs[self.target]).detach()
        for variant, optimizer in zip(self.variants, self.masks, strict=True):
            handle = _plug(variant)
            logits = variant.teacher(*[inputs[m] for m in variant.view])
            handle()
            loss = kd_rows(logits, reference).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def specialise_valid(self, inputs: dict[str, Tensor], label: Tensor) -> None:
        """A validation batch of stage 2."""
        with torch.no_grad():
            for variant in self.variants:
                handle = _plug(variant)
                variant.teacher(*[inputs[m] for m in variant.view])
                handle()

    def distill_step(self, inputs: dict[str, Tensor], label: Tensor) -> None:
        """Stage 3: live teachers, one forward per mask, masks of a teacher stacked."""
        student = self.student(inputs[self.target])
        probs = self.router(student).softmax(dim=1)
        handles: list[Any] = []
        logits, last = [], None
        for variant in self.variants:
            if variant.teacher is not last:
                for handle in handles:
                    handle()
                handles, last = [], variant.teacher
            handles.append(_plug(variant))
            logits.append(variant.teacher(*[inputs[m] for m in variant.view]))
        for handle in handles:
            handle()
        chosen = torch.stack([z.detach() for z in logits], dim=1)[torch.arange(len(label)), probs.argmax(dim=1)]
        uniform = torch.full((4,), 0.25)
        balance = F.kl_div(probs.mean(dim=0).log(), uniform, reduction="batchmean")
        loss = F.cross_entropy(student, label) + kd_rows(student, chosen).mean() + balance
        self.learner.zero_grad()
        loss.backward()
        self.learner.step()

    def student_valid(self, inputs: dict[str, Tensor], label: Tensor) -> None:
        """A validation batch of stage 3."""
        with torch.no_grad():
            F.cross_entropy(self.student(inputs[self.target]), label)


def _plug(variant: Variant) -> Callable[[], None]:
    module = variant.teacher.get_submodule(variant.tap)
    return module.register_forward_hook(lambda m, i, output: variant.mask(output)).remove
