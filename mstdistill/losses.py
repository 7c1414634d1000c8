"""The losses of the three stages over a batch, averaged over the *global* batch of all ranks and micro-batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ranks
from .data.loader import Batch
from .kernels import Routing, balance_from_sums, kd_rows


def kd(learner: Tensor, reference: Tensor, batch: Batch, temperature: float = 4.0) -> Tensor:
    """KD(learner <- reference), averaged over the global batch (method, "Distillation loss")."""
    return batch.mean(kd_rows(learner, reference, temperature))


def task(logits: Tensor, batch: Batch, ignore_index: int | None = None) -> Tensor:
    """Cross entropy with the labels, averaged over the labelled instances (or pixels) of the global batch.

    Args:
        logits: [B, C] or [B, C, H, W].
        ignore_index: a label that doesn't count.
    """
    ignore = -100 if ignore_index is None else ignore_index
    losses = F.cross_entropy(
        logits.float() if logits.dtype != torch.float64 else logits, batch.label, ignore_index=ignore, reduction="none"
    )
    if batch.label.dim() == 1 and ignore_index is None:
        return batch.mean(losses)
    weight = batch.weight.view(-1, *(1,) * (losses.dim() - 1)).to(losses.dtype)
    counted = ranks.total(((batch.label != ignore) * weight).sum()).clamp(min=1.0)
    return (losses * weight).sum() / counted * ranks.world_size() * batch.share


def balance(routing: Routing, batch: Batch, mode: str) -> Tensor:
    """Load balance of the global batch: the ranks' sums of probabilities are reduced first (method, L_lb)."""
    log_probs = routing.log_probs
    # padding gets a large negative number, not -inf: a rank that holds nothing else keeps a finite gradient
    out = torch.finfo(log_probs.dtype).min / 4
    log_probs = log_probs.masked_fill((batch.weight == 0).unsqueeze(1), out)
    log_sums = ranks.log_sum_over_ranks(log_probs.logsumexp(dim=0))
    return balance_from_sums(log_sums, batch.instances, mode) * batch.share
