"""RKD: distances and angles between the instances of a batch (Park et al., CVPR 2019).

With e = (W f + b) / |W f + b| of the penultimate feature f, D the pairwise distances over their mean, A the cosines of
the angle at i between j and k:

    loss = (1 - alpha) CE + alpha [ w_d smooth-L1(D_s, D_t) + w_a smooth-L1(A_s, A_t) ]

The student's embedding learns, the teacher's keeps its random start. The relations are over the instances of a
micro-batch of all processes; the angles of B instances are B^3 numbers, of which few are held at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..config import Settings
from ..experiment import Experiment
from .baseline import Baseline, Seen, relational
from .comparison import compare
from .embedding import Embedding
from .mst import Outcome

# so many angles at a time: what stays in a core's cache, and what keeps a GPU busy
_CPU_ANGLES, _GPU_ANGLES = 2**18, 2**26


def pairwise_distances(e: Tensor) -> Tensor:
    """[B, B] Euclidean distances of rows [B, d], exactly 0 on the diagonal."""
    squares = e.square().sum(dim=1)
    distances = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * e @ e.T).clamp(min=1e-12).sqrt()
    return distances * (1 - torch.eye(len(e), dtype=e.dtype, device=e.device))


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 of the distances, each side's divided by its mean positive one (paper, equation 5)."""

    def scaled(e: Tensor) -> Tensor:
        distances = pairwise_distances(e)
        return distances / (distances.sum() / (distances.detach() > 0).sum().clamp(min=1)).clamp(min=1e-12)

    return F.smooth_l1_loss(scaled(student), scaled(teacher))


def squared_distances(e: Tensor) -> Tensor:
    """[B, B] squares of the distances of rows [B, d], at least float32; exactly 0 where two rows are one point.

    Sums are taken in float64, where rows that nearly agree keep their distance; beyond its rounding they are one point.
    """
    wide = e.double()
    inner = wide @ wide.T
    lengths = inner.diagonal()
    squares = lengths.unsqueeze(0) + lengths.unsqueeze(1)
    q = squares - 2 * inner
    one = q.detach() <= 1e-14 * squares.detach()
    return q.masked_fill(one, 0.0).to(torch.promote_types(e.dtype, torch.float32))


class _Angles(torch.autograd.Function):
    """The sum of the smooth-L1 of all angles' cosines, from both sides' squared distances; the student's side learns.

    By the law of cosines, so that no product of sides [B, B, d] is made; some corners of all triangles at a time, each
    with its gradient, so that no [B, B, B] is held either.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        inverses = [torch.where(q > 0, q, torch.inf).rsqrt() for q in (student, teacher)]
        count = len(student)
        corners = max(1, (_CPU_ANGLES if student.device.type == "cpu" else _GPU_ANGLES) // count**2)
        total, slope = student.new_zeros(()), torch.zeros_like(student)
        for start in range(0, count, corners):
            at = slice(start, start + corners)
            ours, theirs = (_cosines(q, inverse, at) for q, inverse in zip((student, teacher), inverses, strict=True))
            apart = ours - theirs
            weight = apart.clamp(-1.0, 1.0)
            total += (weight * (apart - 0.5 * weight)).sum()
            inverse = inverses[0][at]
            slope[at] -= (weight * ours).sum(dim=2) * inverse.square()
            weight *= 0.5 * inverse.unsqueeze(2)
            weight *= inverse.unsqueeze(1)
            slope[at] += 2 * weight.sum(dim=2)
            slope -= weight.sum(dim=0)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return upstream * slope, None


def _cosines(q: Tensor, inverse: Tensor, at: slice) -> Tensor:
    """[corners, B, B] cosines of the angles at some of the rows."""
    found = q[at].unsqueeze(2) + q[at].unsqueeze(1)
    found -= q
    found *= 0.5 * inverse[at].unsqueeze(2)
    found *= inverse[at].unsqueeze(1)
    return found


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 of the cosines of all angles of rows [B, d] (paper, equation 7); where two of three instances are one
    point the cosine is 0 and teaches nothing."""
    total: Tensor = _Angles.apply(squared_distances(student), squared_distances(teacher))
    return total / len(student) ** 3


class Embeddings(nn.Module):
    """Student's and teacher's penultimate features as normalised vectors [B, d]; only the student's part learns."""

    def __init__(self, student: int, teacher: int, width: int) -> None:
        super().__init__()
        self.embed_s, self.embed_t = Embedding(student, width), Embedding(teacher, width).requires_grad_(False)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            reference = self.embed_t(teacher[0])
        return {"student_embedding": self.embed_s(student[0]), "teacher_embedding": reference}


class Rkd(Baseline):
    """Relations between embeddings; any task (of a dense one, its maps' means)."""

    class Options(Settings):
        distance: float = Field(1.0, ge=0, description="weight of the distances")
        angle: float = Field(2.0, ge=0, description="weight of the angles")
        embedding: int = Field(128, ge=1, description="width of the embeddings")

    name = "rkd"
    needs_all_seen = "it compares the instances of a batch with one another"
    reads_logits = False
    options: Options

    def build(self) -> None:
        (student,), (teacher,) = self.look_at_penultimate()
        self.modules = self.new(
            "embeddings", lambda: Embeddings(Embedding.width(student), Embedding.width(teacher), self.options.embedding)
        )

    def distillation(self, seen: Seen) -> Tensor:
        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            distance, angle = distance_loss(student, teacher), angle_loss(student, teacher)
            return self.options.distance * distance + self.options.angle * angle

        return relational(seen.batch, loss, seen.parts["student_embedding"], seen.parts["teacher_embedding"])


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Rkd)
