"""What several processes need to agree on: sums, gathered rows, flags. One process: everything is the identity."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_apart = False


def _group() -> Any:
    """torch.distributed where processes have joined, else None; asking doesn't load torch."""
    dist = sys.modules.get("torch.distributed") if not _apart else None
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def world_size() -> int:
    """How many processes train together."""
    dist = _group()
    return dist.get_world_size() if dist is not None else 1


def rank() -> int:
    """This process's number, from 0."""
    dist = _group()
    return dist.get_rank() if dist is not None else 0


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process acts as if it were the only one: it asks the others for nothing."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def total(values: Tensor) -> Tensor:
    """Sum over the ranks of a tensor of one shape everywhere; without gradient."""
    values = values.detach()
    if world_size() > 1:
        values = values.clone()
        _group().all_reduce(values)
    return values


def share_of(count: int, world: int, rank: int) -> slice:
    """A rank's part of `count` rows: as equal as they can be, the first ranks have one more."""
    least, more = divmod(count, world)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def rows_of_all(rows: Tensor, count: int) -> Tensor:
    """The ranks' rows [B, ...] one after the other, [count, ...]; with this rank's share of the gradient.

    Every rank computes one loss from the result and the ranks' gradients are averaged afterwards (DDP), so the local
    gradient is multiplied by the number of ranks: the average is then the gradient of the global loss.

    Args:
        rows: this rank's; where `share_of` leaves it none, one that is dropped.
        count: rows of all ranks, split by `share_of`.
    """
    world = world_size()
    if world == 1:
        return rows
    import torch

    most = max(1, -(-count // world))
    own = rows.detach()
    sent = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])]).contiguous()
    parts = [torch.empty_like(sent) for _ in range(world)]
    _group().all_gather(parts, sent)
    sizes = [len(range(count)[share_of(count, world, other)]) for other in range(world)]
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    if rows.requires_grad:
        parts[rank()] = (own + world * (rows - own))[: sizes[rank()]]
    return torch.cat(parts)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if world_size() == 1:
        return flag
    import torch

    return bool(total(torch.tensor(float(flag), device=device)).item() > 0)


def log_sum_over_ranks(log_local: Tensor) -> Tensor:
    """log of the sum over the ranks of exp(log_local), with this rank's share of the gradient.

    Every rank computes one loss from the result and the ranks' gradients are averaged afterwards (DDP), so the local
    gradient is multiplied by the number of ranks: the average is then the gradient of the global loss.
    """
    ranks = world_size()
    if ranks == 1:
        return log_local
    import torch

    local = log_local.detach()
    parts = [torch.empty_like(local) for _ in range(ranks)]
    _group().all_gather(parts, local.contiguous())
    value = torch.stack(parts).logsumexp(dim=0)
    return value + ranks * (local - value).exp() * (log_local - local)


def largest(value: float, device: torch.device) -> float:
    """The largest of the ranks' values."""
    if world_size() == 1:
        return value
    import torch

    values = torch.tensor(float(value), device=device)
    dist = _group()
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return float(values.item())


_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "timed out waiting", "nccl", "broken pipe")


def lost(error: BaseException) -> bool:
    """Whether an error says that another process died, hangs or can't be reached."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    # by now the group may be gone, so the launcher's word counts
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def wait() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        _group().barrier()
