"""DKD: distillation split into the target's part and the others', each with a weight (Zhao et al., CVPR 2022).

With p, q the softened distributions of teacher and student, y the target, b = (p_y, 1 - p_y) and p^ = p without y,
renormalised:

    TCKD = T^2 KL(b_t || b_s),   NCKD = T^2 KL(p^_t || p^_s),   loss = (1 - alpha) CE + alpha (a TCKD + b NCKD)

KD = TCKD + (1 - p_y) NCKD: plain distillation fades the second part out where the teacher is sure.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..config import Settings
from ..experiment import Experiment
from .baseline import Baseline, Seen, mean_over_pixels, true_class
from .comparison import compare
from .mst import Outcome


def decoupled_rows(
    student: Tensor, teacher: Tensor, label: Tensor, temperature: float, ignore_index: int | None = None
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, [B] each (paper, equation 7); dense: means over the labelled pixels.

    Args:
        student, teacher: [B, C] or [B, C, H, W], floating.
        label: [B] or [B, H, W] int64; where it is `ignore_index` both parts are 0.
    """
    target, counts = true_class(label, student.shape[1], ignore_index)
    log_q, log_p = ((x / temperature).log_softmax(dim=1) for x in (student, teacher.to(student.dtype)))
    # log of the two-way distribution, exact where the target's part is nearly 1
    binary = [((log * target).sum(dim=1), log.masked_fill(target, -float("inf")).logsumexp(dim=1))
              for log in (log_q, log_p)]  # fmt: skip
    (q_own, q_rest), (p_own, p_rest) = binary
    tckd = p_own.exp() * (p_own - q_own) + p_rest.exp() * (p_rest - q_rest)
    # the others among themselves; the target's place holds 0 in both, so that it adds nothing
    rest_q, rest_p = ((log - rest.unsqueeze(1)).masked_fill(target, 0.0)
                      for log, rest in ((log_q, q_rest), (log_p, p_rest)))  # fmt: skip
    nckd = (rest_p.exp() * (rest_p - rest_q)).sum(dim=1)
    return mean_over_pixels(tckd, counts) * temperature**2, mean_over_pixels(nckd, counts) * temperature**2


class Dkd(Baseline):
    """Decoupled distillation; any task."""

    class Options(Settings):
        target: float = Field(1.0, ge=0, description="weight of TCKD")
        rest: float = Field(8.0, ge=0, description="weight of NCKD")

    name = "dkd"
    one_class = "it looks for the one true class of an instance"
    not_mixed = "it takes an instance's one class apart from the others"
    options: Options

    def distillation(self, seen: Seen) -> Tensor:
        ignore = self.experiment.task.ignore_index
        target, rest = decoupled_rows(seen.student, seen.teacher, seen.batch.label, self.temperature, ignore)
        return seen.batch.mean(self.options.target * target + self.options.rest * rest)


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Dkd)
