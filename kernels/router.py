"""Routing: from router logits to probabilities, the k chosen teachers and the load-balance loss.

    log r = log_softmax(logits)            [B, M]
    I     = the k largest per row, the lowest index first among equals
    KL    = 1/M sum_m u (log u - log rbar_m),  u = 1/M, rbar_m = mean_b r_bm      (quirk: a 1-d KL divided by M)
    CV    = std(imp) / mean(imp),  imp_m = sum_b r_bm, unbiased std

rbar enters through its logarithm, taken by logsumexp over the batch, so that a teacher whose probability underflows
for every instance (a starved teacher) still gives a finite loss and gradient. Backward, with G_m the gradient at
log sum_b r_bm and g an outer gradient on log r:

    v_bm = g_bm + r_bm / sum_b r_bm * G_m,    dL/dlogits_bm = v_bm - r_bm sum_n v_bn

Where a teacher can't see an instance (a modality of it is missing), its probability is exactly 0 there, the others'
add up to 1, and it is never among the k: a slot that nobody is left for holds -1. The balance is then against what even
routing over the teachers at hand would give, e_m = sum_b [m sees b] / n_b with n_b teachers that see b:

    KL = 1/M sum_m u_m (log u_m - log rbar_m),  u = e / sum e,  rbar_m = sum_b r_bm / sum e,    CV of imp_m / e_m

which is the above where everyone sees everything. An instance that nobody sees is in neither sum.

What is undefined elsewhere is defined here: -inf logits are teachers that are never chosen before finite ones; a row
with NaN gives NaN probabilities and the indices 0..k-1; without counted instances the loss is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from .constants import BALANCES, LOWEST
from .cpu import router as cpu
from .launch import check_floating, plain_cpu, use_triton, wide

MAX_K = 16
MAX_TEACHERS = 1024


@dataclass(frozen=True)
class Routing:
    """What a router decided for a batch.

    Attributes:
        log_probs: [B, M] log-probabilities over the specialised teachers, differentiable; float32 or wider.
        indices: [B, K] int64, the chosen teachers, most probable first.
        log_sums: [M] log of the probabilities' sum over the counted instances, differentiable.
        balance: the load-balance loss, differentiable, where one was asked for.
        seen: [B, M] whether a teacher can see an instance; None: all see all. Where one can't, its log-probability is
            `LOWEST`; an index -1 stands for nobody.
        even: [M] the sums that even routing over the teachers at hand would give, where `seen` is.
        weight: [B] what each instance counts in sums and counts; None: 1.
        counted: the counts, where they were made on the way.
    """

    log_probs: Tensor
    indices: Tensor
    log_sums: Tensor
    balance: Tensor | None = None
    seen: Tensor | None = None
    even: Tensor | None = None
    weight: Tensor | None = None
    counted: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """[B, M] probabilities."""
        return self.log_probs.exp()

    @property
    def counts(self) -> Tensor:
        """[M] int64, how often each teacher was chosen by a counted instance."""
        if self.counted is not None:
            return self.counted
        by = cpu.count if self.seen is None and plain_cpu(self.indices) else count
        return by(self.indices, self.log_probs.shape[1], self.weight)

    def choosing(self, indices: Tensor) -> Routing:
        """The same probabilities with other teachers [B, K] chosen."""
        if self.seen is not None:
            indices = available(indices, self.seen)
        return replace(self, indices=indices, counted=None)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest of scores [B, M], the lowest index first among equals.

    Raises:
        ValueError: k is not between 1 and M.
    """
    num_teachers = scores.shape[-1]
    if not 1 <= k <= num_teachers:
        raise ValueError(f"k={k}: must be between 1 and the number of teachers, {num_teachers}")
    if plain_cpu(scores):
        return cpu.top_k(scores.detach(), k)
    if k == 1:  # the first of the largest, as argmax promises
        return scores.detach().argmax(dim=-1, keepdim=True)
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]


def count(indices: Tensor, num_teachers: int, weight: Tensor | None = None) -> Tensor:
    """[M] int64, how often each teacher is among the indices [B, K], -1 for nobody, of instances with a positive
    weight [B]."""
    counted = torch.ones_like(indices[:, :1]) if weight is None else (weight > 0).to(torch.int64).unsqueeze(1)
    ones = (counted * (indices >= 0)).reshape(-1)
    zeros = torch.zeros(num_teachers, dtype=torch.int64, device=indices.device)
    return zeros.index_add_(0, indices.clamp(min=0).reshape(-1), ones)


def available(indices: Tensor, seen: Tensor) -> Tensor:
    """The indices [B, K] of teachers that see their instance, -1 in the place of others."""
    return torch.where((indices >= 0) & seen.gather(1, indices.clamp(min=0)), indices, -1)


def top_available(scores: Tensor, seen: Tensor, k: int) -> Tensor:
    """As `top_k`, of the teachers that see an instance [B, M]; -1 where none is left. NaN counts as 0."""
    # those who see come first whatever their score: -inf is below every clamped one
    key = torch.where(scores.isnan(), 0.0, scores.detach()).clamp(min=2 * LOWEST)
    return available(top_k(key.masked_fill(~seen, -math.inf), k), seen)


def even_sums(seen: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[M] sums of probabilities over the counted instances, if each had its available teachers equally likely."""
    share = seen.to(dtype) / seen.sum(dim=1, keepdim=True).clamp(min=1)
    return share.sum(dim=0) if weight is None else (share * weight.to(dtype).unsqueeze(1)).sum(dim=0)


def route_reference(
    logits: Tensor, k: int, weight: Tensor | None = None, balance: str = "", seen: Tensor | None = None
) -> Routing:
    """`route` in plain PyTorch."""
    logits = logits.to(wide(logits.dtype))
    if seen is not None:  # a row that nobody sees must not become NaN on the way
        logits = logits.masked_fill(~seen, -math.inf).masked_fill(~seen.any(dim=1, keepdim=True), 0.0)
    log_probs = logits.log_softmax(dim=-1)
    if seen is not None:
        log_probs = log_probs.masked_fill(~seen, LOWEST)
    level = log_probs.clamp(min=LOWEST)
    if weight is None:
        total: float | Tensor = float(len(logits))
    else:
        weight = weight.to(log_probs.dtype)
        counted = weight > 0
        level = level + torch.where(counted, weight, 1.0).log().unsqueeze(1)
        level = level.masked_fill(~counted.unsqueeze(1), LOWEST)
        total = weight.sum()
    log_sums = level.logsumexp(dim=0).clamp(min=LOWEST)
    indices = top_k(log_probs, k) if seen is None else top_available(log_probs, seen, k)
    even = None if seen is None else even_sums(seen, weight, log_sums.dtype)
    loss = balance_from_sums(log_sums, total, balance, even) if balance else None
    return Routing(log_probs, indices, log_sums, loss, seen, even, weight)


def route(
    logits: Tensor, k: int, weight: Tensor | None = None, balance: str = "", seen: Tensor | None = None
) -> Routing:
    """Route each instance to its k most probable teachers (paper, section 3.4); on a GPU one launch each way.

    Args:
        logits: [B, M] floating point router logits, M <= 1,024.
        k: teachers per instance, 1 <= k <= min(M, 16).
        weight: [B] >= 0, what each instance counts in sums and counts (0: padding); None means 1.
        balance: "KL" or "CV" to have the load-balance loss of this batch as well.
        seen: [B, M] bool, whether a teacher can see an instance; None: all see all, at no cost.

    Raises:
        ValueError: an argument is out of range.
    """
    check_floating(logits=logits)
    if logits.dim() != 2:
        raise ValueError(f"logits: shape {list(logits.shape)}; must be [instances, teachers]")
    num_teachers = logits.shape[1]
    if not 1 <= num_teachers <= MAX_TEACHERS:
        raise ValueError(f"logits: {num_teachers} teachers; must be between 1 and {MAX_TEACHERS}")
    if not 1 <= k <= min(num_teachers, MAX_K):
        raise ValueError(f"k={k}: must be between 1 and {min(num_teachers, MAX_K)} ({num_teachers} teachers)")
    if balance not in BALANCES:
        raise ValueError(f"load balance {balance!r}: must be 'KL' or 'CV'")
    if weight is not None and weight.shape != logits.shape[:1]:
        raise ValueError(f"weight: shape {list(weight.shape)}; must be [{logits.shape[0]}], one per instance")
    if seen is not None and (seen.shape != logits.shape or seen.dtype != torch.bool):
        raise ValueError(f"seen: {seen.dtype} {list(seen.shape)}; must be bool {list(logits.shape)}, as the logits")
    if not use_triton(logits, weight, seen):
        if plain_cpu(logits) and seen is None:
            return _on_cpu(logits, k, weight, balance)
        return route_reference(logits, k, weight, balance, seen)
    from .jit import router as jit

    log_probs, indices, log_sums, counts, loss = jit.route(logits, weight, seen, k, balance if seen is None else "")
    if seen is None:
        return Routing(log_probs, indices, log_sums, loss if balance else None, weight=weight, counted=counts)
    even = even_sums(seen, weight, log_sums.dtype)
    known = balance_from_sums(log_sums, 0.0, balance, even) if balance else None
    return Routing(log_probs, indices, log_sums, known, seen, even, weight, counts)


def _on_cpu(logits: Tensor, k: int, weight: Tensor | None, balance: str) -> Routing:
    acc = wide(logits.dtype)
    weight = None if weight is None else weight.to(acc)
    log_probs, log_sums, loss, indices = cpu.route(
        logits if logits.dtype == acc else logits.to(acc), weight, balance, k
    )
    return Routing(log_probs, indices, log_sums, loss if balance else None, weight=weight)


def balance_from_sums(
    log_sums: Tensor, total: float | Tensor, mode: str, even: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Load-balance loss from the batch sums of the probabilities.

    Args:
        log_sums: [M] log of sum_b r_bm. Splitting the loss here makes it exact under data parallelism: the M sums are
            reduced over the ranks before this half.
        total: number of instances in the sums, or their weight; 0 gives the loss 0.
        mode: "KL" or "CV".
        even: [M] see `Routing`; then it tells the total.

    Raises:
        ValueError: unknown mode.
    """
    num_teachers = log_sums.shape[0]
    if mode not in BALANCES[1:]:
        raise ValueError(f"load balance {mode!r}: must be 'KL' or 'CV'")
    if even is not None:
        return _balance_of_available(log_sums, even, mode)
    # made on the device: a copy from the host would wait, and can't be captured in a graph
    amount = total.to(log_sums.dtype) if isinstance(total, Tensor) else log_sums.new_full((), total)
    nobody = amount == 0
    log_sums = torch.where(nobody, 0.0, log_sums)
    if mode == "KL":
        log_mean = log_sums - torch.where(nobody, 1.0 / num_teachers, amount).log()
        uniform = 1.0 / num_teachers
        loss = (uniform * (math.log(uniform) - log_mean)).sum() / num_teachers
    elif num_teachers == 1:
        loss = log_sums.sum() * 0.0
    else:
        importance = log_sums.exp()
        loss = importance.std(unbiased=True) / importance.mean()
    return torch.where(nobody, 0.0, loss)


def _balance_of_available(log_sums: Tensor, even: Tensor, mode: str) -> Tensor:
    """The balance over what teachers [M] can see; one that sees nothing counts nothing."""
    there, num_teachers = even > 0, even.shape[0]
    known = torch.where(there, even, 1.0)
    log_sums = torch.where(there, log_sums, 0.0)
    if mode == "KL":
        total = even.sum()
        total = torch.where(total > 0, total, 1.0)
        terms = even / total * ((known / total).log() - (log_sums - total.log()))
        return torch.where(there, terms, 0.0).sum() / num_teachers
    use = torch.where(there, log_sums.exp() / known, 0.0)
    present = there.sum()
    mean = use.sum() / present.clamp(min=1)
    variance = torch.where(there, use - mean, 0.0).square().sum() / (present - 1).clamp(min=1)
    spread = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)
    return spread / torch.where(mean > 0, mean, 1.0)


def load_balance(log_probs: Tensor, mode: str = "KL") -> Tensor:
    """Load-balance loss of a batch of routing log-probabilities [B, M]; a scalar (method, stage 3)."""
    return balance_from_sums(log_probs.logsumexp(dim=0), float(log_probs.shape[0]), mode)


def gate(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Two Linears with nothing between them (paper, GateNet), as one affine map where that takes fewer operations.

    Both pairs of parameters keep their own gradients: with W = W2 W1, b = W2 b1 + b2 and dW, db the gradients of the
    one map, dW1 = W2' dW, db1 = W2' db, dW2 = dW W1' + db b1', db2 = db. 2BCM + 4MC^2 operations in place of
    4BC^2 + 4BCM for B rows, C classes, M teachers.

    Args:
        x: [B, C]; weight1 [2C, C], bias1 [2C], weight2 [M, 2C], bias2 [M].
    """
    if len(x) > 2 * len(weight2) and x.shape[1] >= 64:
        return linear(x, weight2 @ weight1, weight2 @ bias1 + bias2)
    return linear(linear(x, weight1, bias1), weight2, bias2)
