"""RKD: distances and angles between the instances of a batch (Park et al., CVPR 2019).

With e = (W f + b) / |W f + b| of the penultimate feature f, D the pairwise distances over their mean, A the cosines of
the angle at i between j and k:

    loss = (1 - alpha) CE + alpha [ w_d smooth-L1(D_s, D_t) + w_a smooth-L1(A_s, A_t) ]

The student's embedding learns, the teacher's keeps its random start. The relations are over the instances of a
micro-batch of all processes; the angles of B instances are B^3 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..config import Settings
from ..experiment import Experiment
from .baseline import Baseline, Seen, relational
from .comparison import compare
from .embedding import Embedding
from .mst import Outcome


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


def cosines(e: Tensor) -> Tensor:
    """[B, B, B] cosines of the angle at i between j and k of rows [B, d]; 0 where two of them are one point.

    From the squares q of the distances alone, by the law of cosines: B^3 numbers instead of B^3 products of d. The
    squares are taken in float64, where rows that nearly agree keep their distance; beyond rounding they are one point.
    """
    wide = e.double()
    inner = wide @ wide.T
    squares = inner.diagonal().unsqueeze(0) + inner.diagonal().unsqueeze(1)
    q = squares - 2 * inner
    one = q.detach() <= 1e-14 * squares.detach()
    q = q.masked_fill(one, 0.0)
    inverse = q.masked_fill(one, 1.0).rsqrt().masked_fill(one, 0.0)
    q, inverse = (x.to(torch.promote_types(e.dtype, torch.float32)) for x in (q, inverse))
    return (q.unsqueeze(2) + q.unsqueeze(1) - q) * (0.5 * inverse.unsqueeze(2) * inverse.unsqueeze(1))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 of the cosines of all angles [B, B, B] (paper, equation 7)."""
    return F.smooth_l1_loss(cosines(student), cosines(teacher))


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
