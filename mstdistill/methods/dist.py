"""DIST: the student keeps the teacher's relations instead of its values (Huang et al., NeurIPS 2022).

With P [B, C] the softened probabilities and d = 1 - Pearson's correlation:

    inter = mean over instances of d(P_s[b, :], P_t[b, :]),   intra = mean over classes of d(P_s[:, c], P_t[:, c])
    loss = (1 - alpha) CE + alpha T^2 (b inter + g intra)

The second relation is over the instances of a micro-batch of all processes.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..config import Settings
from ..experiment import Experiment
from .baseline import Baseline, Seen, relational
from .comparison import compare
from .mst import Outcome

_EPS = 1e-8


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - Pearson's correlation along a dimension; 1 where one side is constant."""
    a, b = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
    # the bound keeps the gradient of the root finite at a constant row
    norms = [x.square().sum(dim=dim).clamp(min=_EPS**2).sqrt() for x in (a, b)]
    return 1.0 - (a * b).sum(dim=dim) / (norms[0] * norms[1])


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, inter: float = 2.0, intra: float = 2.0
) -> Tensor:
    """The two relations, weighted (paper, equations 8 to 10), a scalar.

    Args:
        student, teacher: [B, C], or [B, C, H, W], whose pixels count as instances.
    """
    if student.dim() > 2:
        student, teacher = (x.movedim(1, -1).flatten(0, -2) for x in (student, teacher))
    p_s, p_t = ((x / temperature).softmax(dim=1) for x in (student, teacher.to(student.dtype)))
    rows, columns = pearson_distance(p_s, p_t, 1).mean(), pearson_distance(p_s, p_t, 0).mean()
    return temperature**2 * (inter * rows + intra * columns)


class Dist(Baseline):
    """Relations between classes and between instances; any task."""

    class Options(Settings):
        inter: float = Field(2.0, ge=0, description="weight of the relation over the classes of an instance")
        intra: float = Field(2.0, ge=0, description="weight of the relation over the instances for a class")
        temperature: float = Field(1.0, gt=0, description="instead of the recipe's")

    name = "dist"
    one_class = "it compares distributions over all classes, and here each class is a yes or no of its own"
    needs_all_seen = "it compares the instances of a batch with one another"
    options: Options

    def distillation(self, seen: Seen) -> Tensor:
        own = self.options
        return relational(
            seen.batch, lambda s, t: dist_loss(s, t, own.temperature, own.inter, own.intra), seen.student, seen.teacher
        )


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Dist)
