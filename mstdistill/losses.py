"""The losses of the three stages over a batch, averaged over the *global* batch of all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ranks
from .data.feeding.batch import Batch
from .data.feeding.said import mixed
from .data.source import UNLABELLED
from .kernels import Routing, balance_from_sums, kd_rows


def kd(
    learner: Tensor, reference: Tensor, batch: Batch, temperature: float = 4.0, seen: Tensor | None = None
) -> Tensor:
    """KD(learner <- reference), averaged over the global batch (method, "Distillation loss"); an instance that isn't
    `seen` [B] by both adds nothing."""
    rows = kd_rows(learner, reference, temperature)
    return batch.mean(rows if seen is None else rows * seen)


def both(seen: Tensor | None, other: Tensor | None) -> Tensor | None:
    """[B] what two networks see; None: all."""
    return other if seen is None else seen if other is None else seen & other


def ignored(ignore_index: int | None) -> int:
    """The label that counts in no task's loss: the task's own, else that of an instance without one."""
    return UNLABELLED if ignore_index is None else ignore_index


def task_scale(batch: Batch, dtype: torch.dtype, dense: bool, ignore_index: int | None = None) -> Tensor:
    """[B] what an instance's cross entropy (dense: its sum over the labelled pixels; of several classes, over the known
    ones) counts in the mean over the labelled instances (or pixels, or classes) of the global batch."""
    if not dense and ignore_index is None:
        return batch.task_scale(dtype)
    ignore = ignored(ignore_index)
    weight = batch.weight.view(-1, *(1,) * (batch.label.dim() - 1))
    known = (batch.label != ignore) * weight
    if batch.partner is not None:  # of several classes at once each of the two has known ones of its own
        own = batch.partner.own.to(known.dtype).view(weight.shape)
        known = known * own + (batch.partner.label != ignore) * weight * (1 - own)
    counted = ranks.total(known.sum()).clamp(min=1.0)
    return batch.weight.to(dtype) / counted * (ranks.world_size() * batch.share)


def task(logits: Tensor, batch: Batch, ignore_index: int | None = None, seen: Tensor | None = None) -> Tensor:
    """Cross entropy with the labels, averaged over the labelled instances (or pixels) of the global batch.

    Args:
        logits: [B, C] or [B, C, H, W].
        ignore_index: a label that doesn't count.
        seen: [B] what the network sees: another instance adds nothing; None: all.
    """
    ignore = ignored(ignore_index)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    losses = F.cross_entropy(logits, batch.label, ignore_index=ignore, reduction="none")
    losses = losses.flatten(1).sum(dim=1) if losses.dim() > 1 else losses
    losses = mixed_rows(losses, lambda label: task_rows(logits, label, ignore_index), batch)
    scaled = losses * task_scale(batch, losses.dtype, logits.dim() > 2, ignore_index)
    return (scaled if seen is None else scaled * seen).sum()


def mixed_rows(own: Tensor, of: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """[B] what instances lose that are mixed as their labels are.

    Args:
        own: [B] with the batch's own labels.
        of: from labels to the same with these.
    """
    if batch.partner is None:
        return own
    share = batch.partner.own.to(own.dtype)
    return own * share + of(batch.partner.label) * (1 - share)


def mixed_logits(own: Tensor, other: Tensor, batch: Batch, temperature: float, several: bool = False) -> Tensor:
    """[B, M, C, ...] what frozen networks say of mixed instances, where they were asked about each instance alone:
    their softened distributions are mixed, as labels are.

    Args:
        own, other: logits [B, M, C, ...] of the batch's instances and of their partners.
        several: each class is a yes or no of its own.
    """
    assert batch.partner is not None
    share = batch.partner.own.to(own.dtype).view(-1, *(1,) * (own.dim() - 1))
    return mixed(own / temperature, other / temperature, share, 2, several) * temperature


def task_rows(logits: Tensor, label: Tensor, ignore_index: int | None = None) -> Tensor:
    """[B] cross entropies of logits [B, C, ...]; dense: an instance's mean over its labelled pixels, 0 without any."""
    ignore = ignored(ignore_index)
    losses = F.cross_entropy(logits, label, ignore_index=ignore, reduction="none")
    if losses.dim() == 1:
        return losses
    return losses.flatten(1).sum(dim=1) / (label != ignore).flatten(1).sum(dim=1).clamp(min=1)


def balance(routing: Routing, batch: Batch, mode: str) -> Tensor:
    """Load balance of the global batch: the ranks' sums of probabilities are reduced first (method, L_lb).

    Args:
        routing: made with the batch's weight.
    """
    if ranks.world_size() == 1 and routing.balance is not None:
        return routing.balance * batch.share
    log_sums = ranks.log_sum_over_ranks(routing.log_sums)
    even = None if routing.even is None else ranks.total(routing.even)
    return balance_from_sums(log_sums, batch.instances, mode, even) * batch.share
