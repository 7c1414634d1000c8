"""Routing: from router logits to probabilities, the k chosen teachers and the load-balance loss.

    log r = log_softmax(logits)            [B, M]
    I     = the k largest per row, the lowest index first among equals
    KL    = 1/M sum_m u (log u - log rbar_m),  u = 1/M, rbar_m = mean_b r_bm      (quirk: a 1-d KL divided by M)
    CV    = std(imp) / mean(imp),  imp_m = sum_b r_bm, unbiased std

rbar enters through its logarithm, taken by logsumexp over the batch, so that a teacher whose probability underflows
for every instance (a starved teacher) still gives a finite loss and gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """What a router decided for a batch.

    Attributes:
        log_probs: [B, M] log-probabilities over the specialised teachers, differentiable.
        indices: [B, K] int64, the chosen teachers, most probable first.
    """

    log_probs: Tensor
    indices: Tensor

    @property
    def probs(self) -> Tensor:
        """[B, M] probabilities."""
        return self.log_probs.exp()

    def counts(self, weight: Tensor | None = None) -> Tensor:
        """[M] how often each teacher was chosen; `weight` [B] leaves padded instances out."""
        num_teachers = self.log_probs.shape[1]
        ones = torch.ones_like(self.indices, dtype=torch.float64)
        if weight is not None:
            ones = ones * weight.to(torch.float64).unsqueeze(1)
        return torch.zeros(num_teachers, dtype=torch.float64, device=self.indices.device).index_add_(
            0, self.indices.reshape(-1), ones.reshape(-1)
        )


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest of scores [B, M], the lowest index first among equals.

    Raises:
        ValueError: k is not between 1 and M.
    """
    num_teachers = scores.shape[-1]
    if not 1 <= k <= num_teachers:
        raise ValueError(f"k={k}: must be between 1 and the number of teachers, {num_teachers}")
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]


def route(logits: Tensor, k: int) -> Routing:
    """Route each instance to its k most probable teachers (paper, section 3.4).

    Args:
        logits: [B, M] floating point router logits.
        k: teachers per instance, 1 <= k <= M.
    """
    log_probs = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_probs = log_probs.log_softmax(dim=-1)
    return Routing(log_probs=log_probs, indices=top_k(log_probs, k))


def balance_from_sums(log_sums: Tensor, total: float, mode: str) -> Tensor:
    """Load-balance loss from the batch sums of the probabilities.

    Args:
        log_sums: [M] log of sum_b r_bm. Splitting the loss here makes it exact under data parallelism: the M sums are
            reduced over the ranks before this half.
        total: number of instances in the sums.
        mode: "KL" or "CV".

    Raises:
        ValueError: unknown mode.
    """
    num_teachers = log_sums.shape[0]
    if mode == "KL":
        log_mean = log_sums - math.log(total)
        uniform = 1.0 / num_teachers
        return (uniform * (math.log(uniform) - log_mean)).sum() / num_teachers
    if mode == "CV":
        if num_teachers == 1:
            return log_sums.sum() * 0.0
        importance = log_sums.exp()
        return importance.std(unbiased=True) / importance.mean()
    raise ValueError(f"load balance {mode!r}: must be 'KL' or 'CV'")


def load_balance(log_probs: Tensor, mode: str = "KL") -> Tensor:
    """Load-balance loss of a batch of routing log-probabilities [B, M]; a scalar (method, stage 3)."""
    return balance_from_sums(log_probs.logsumexp(dim=0), float(log_probs.shape[0]), mode)
