"""Pseudo-labels: where a teacher is sure of a class, that is the label (Lee, ICML workshop 2013).

    loss = (1 - alpha) CE(z_s, y) + alpha mean over the batch of [ max p_t >= threshold ] CE(z_s, argmax p_t)

With a teacher that sees what the student sees it is self-training on instances without labels.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..config import Settings
from ..experiment import Experiment
from .baseline import Baseline, Seen
from .comparison import compare
from .mst import Outcome


def pseudo_rows(student: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """[B] cross entropy with the teacher's class where its probability reaches the threshold, else 0; dense: the mean
    over the pixels.

    Args:
        student, teacher: logits [B, C] or [B, C, H, W].
    """
    sure, label = teacher.softmax(dim=1).max(dim=1)
    rows = cross_entropy(student, label, reduction="none") * (sure >= threshold)
    return rows.flatten(1).mean(dim=1) if rows.dim() > 1 else rows


class Pseudo(Baseline):
    """Hard labels of one teacher; any task."""

    class Options(Settings):
        threshold: float = Field(0.8, ge=0, le=1, description="probability from which a class counts as known")

    name = "pseudo"
    one_class = "it takes the surest class for an instance's one"
    options: Options

    def distillation(self, seen: Seen) -> Tensor:
        return seen.batch.mean(pseudo_rows(seen.student, seen.teacher, self.options.threshold))


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with its labels."""
    return compare(experiment, Pseudo)
