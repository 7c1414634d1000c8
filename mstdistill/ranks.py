"""What several processes need to agree on: sums, gathered rows, flags. One process: everything is the identity."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def total(values: Tensor) -> Tensor:
    """Sum over the ranks of a tensor of one shape everywhere; without gradient."""
    values = values.detach()
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if world_size() == 1:
        return flag
    return bool(total(torch.tensor(float(flag), device=device)).item() > 0)


def log_sum_over_ranks(log_local: Tensor) -> Tensor:
    """log of the sum over the ranks of exp(log_local), with this rank's share of the gradient.

    Every rank computes one loss from the result and the ranks' gradients are averaged afterwards (DDP), so the local
    gradient is multiplied by the number of ranks: the average is then the gradient of the global loss.
    """
    ranks = world_size()
    if ranks == 1:
        return log_local
    local = log_local.detach()
    parts = [torch.empty_like(local) for _ in range(ranks)]
    dist.all_gather(parts, local.contiguous())
    value = torch.stack(parts).logsumexp(dim=0)
    return value + ranks * (local - value).exp() * (log_local - local)


def largest(value: float, device: torch.device) -> float:
    """The largest of the ranks' values."""
    if world_size() == 1:
        return value
    values = torch.tensor(float(value), device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return float(values.item())


_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "timed out waiting", "nccl", "broken pipe")


def lost(error: BaseException) -> bool:
    """Whether an error says that another process died, hangs or can't be reached."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    # by now the group may be gone, so the launcher's word counts
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def wait() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
