"""What stage 2 can ask of a mask beside the student's agreement (`sections.mask`).

    keep:     + keep_weight * (mean_d mask_m(x) - keep)^2    of each instance x, so that its mask has to choose
    correct:  CE(z_m(x), y) in KD's place where the student is wrong, so that a mask has to know where that is

Both are of an instance alone: however a global batch is cut into processes and micro-batches, the sums stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.feeding.batch import Batch
from ..losses import ignored


def budget_rows(mask: Tensor, keep: float) -> Tensor:
    """[B] squared deviations of each instance's kept share from `keep`; mask [B, d]."""
    return (mask.mean(dim=1) - keep).square()


def mistaken(student: Tensor, batch: Batch, ignore_index: int | None) -> Tensor:
    """[B] whether the student's logits [B, C] name another class than the label; never without one. Of mixed instances:
    than both labels."""
    answer, label = student.argmax(dim=1), batch.label
    wrong = (answer != label) & (label != ignored(ignore_index))
    return wrong if batch.partner is None else wrong & (answer != batch.partner.label)


def corrected(rows: Tensor, task: Tensor, wrong: Tensor) -> Tensor:
    """[B] the agreement's losses, the labels' where the student is wrong."""
    return torch.where(wrong, task.to(rows.dtype), rows)
