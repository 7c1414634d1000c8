"""What networks say of a mixed instance that were asked about each of its two alone: their distributions are mixed, as
labels are.

    a log-probabilities = logaddexp(log a + log p_i, log (1 - a) + log p_j)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed(own: Tensor, other: Tensor, part: Tensor, axis: int, several: bool) -> Tensor:
    """Logits of the mixture.

    Args:
        own, other: logits of an instance and of its partner, with the classes at `axis`.
        part: the instance's own part, of a shape that goes with them.
        several: each class is a yes or no of its own.
    """

    def sum_of(x: Tensor, y: Tensor) -> Tensor:
        return torch.logaddexp(x + part.log(), y + (1 - part).log())

    if several:
        return sum_of(F.logsigmoid(own), F.logsigmoid(other)) - sum_of(F.logsigmoid(-own), F.logsigmoid(-other))
    return sum_of(own.log_softmax(dim=axis), other.log_softmax(dim=axis))
