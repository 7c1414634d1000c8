"""Logits of frozen networks as a memory-mapped table [N, M, C], computed once: in stage 3 they are constants.

Each rank computes and writes its own rows; everyone reads all. A table is known by the fingerprint of what made it, and
one that doesn't agree is built anew. Tables in half precision hold logits minus their row's maximum, which the softmax
doesn't see and which keeps their error small.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ranks
from ..data.batch import Batch
from ..data.loader import Loader
from ..errors import CheckpointError
from ..files import write_text

MANIFEST = "cache.json"
# On the CPU, tables up to this size are held in memory; larger ones are read from disk, which is memory-mapped anyway.
RESIDENT_BYTES = 256 * 1024**2
_FP16_FLOOR = -6e4
HALVES = (torch.float16, torch.bfloat16)


def fingerprint(parts: Iterable[object], modules: Mapping[str, nn.Module]) -> str:
    """A hash of facts and of networks' every tensor."""
    digest = hashlib.sha256(repr(tuple(parts)).encode())
    for name, module in sorted(modules.items()):
        for key, tensor in module.state_dict().items():
            digest.update(f"{name}/{key}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                          if tensor.dim() else repr(tensor.item()).encode())  # fmt: skip
    return digest.hexdigest()


class LogitCache:
    """A table of logits.

    Attributes:
        shape: (N, M, C, ...).

    Args:
        resident_bytes: up to this size a table is held in a GPU's memory.
    """

    def __init__(self, folder: Path, device: torch.device, resident_bytes: float = RESIDENT_BYTES) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        self.shape = tuple(manifest["shape"])
        self.device = device
        # NumPy has no bfloat16: such tables lie on disk as their bits
        self._bits = manifest["dtype"] == "bfloat16"
        self._parts = [np.load(folder / name, mmap_mode="r") for name in manifest["shards"]]
        self._starts = np.cumsum([0] + [len(part) for part in self._parts])
        self._resident: Tensor | None = None
        if sum(part.nbytes for part in self._parts) <= (RESIDENT_BYTES if device.type == "cpu" else resident_bytes):
            table = np.concatenate(self._parts) if len(self._parts) > 1 else np.array(self._parts[0])
            self._resident = self._typed(torch.from_numpy(table)).to(device)

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def resident(self) -> bool:
        """Whether the table is held on the device."""
        return self._resident is not None

    def _typed(self, values: Tensor) -> Tensor:
        return values.view(torch.bfloat16) if self._bits else values

    def look(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the rows of these positions [B] are: the table [N, M, C, ...] on its device and the positions there,
        or, where the table stays on disk, the rows themselves [B, M, C, ...] and None."""
        if self._resident is not None:
            return self._resident, index.to(self.device)
        wanted = index.cpu().numpy()
        first = self._parts[0]
        values = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for number, part in enumerate(self._parts):
            here = owner == number
            values[here] = part[wanted[here] - self._starts[number]]
        return self._typed(torch.from_numpy(values)).to(self.device, non_blocking=True), None

    def gather(self, index: Tensor) -> Tensor:
        """Rows [B, M, C, ...] of these positions [B], in float32 or float64, on the cache's device."""
        table, rows = self.look(index)
        values = table if rows is None else table[rows]
        return values.float() if values.dtype in HALVES else values


def open_cache(
    folder: Path, expected: str, device: torch.device, resident_bytes: float = RESIDENT_BYTES
) -> tuple[LogitCache | None, str]:
    """The table in `folder` if it is whole and has the expected fingerprint; else None and why."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["fingerprint"] != expected:
            return None, "it is of other teachers, masks or data"
        return LogitCache(folder, device, resident_bytes), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError) as error:
        return None, f"it is damaged ({type(error).__name__})"


def build_cache(
    folder: Path,
    expected: str,
    logits_of: Callable[[Batch], Tensor],
    loader: Loader,
    device: torch.device,
    dtype: str = "float32",
    advance: Callable[[], None] = lambda: None,
    resident_bytes: float = RESIDENT_BYTES,
) -> LogitCache:
    """Compute the table for every instance of the loader's split.

    Args:
        logits_of: from a batch on the device to logits [B, M, C, ...]; called under no_grad.
        dtype: "float16" or "bfloat16" (both minus the row maximum), "float32" or "float64".

    Raises:
        CheckpointError: it can't be written.
    """
    count, world, rank = len(loader.split), ranks.world_size(), ranks.rank()
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    ranks.wait()
    start, stop = count * rank // world, count * (rank + 1) // world
    name = f"shard-{rank:05d}-of-{world:05d}.npy"
    table: Any = None
    tail: list[int] = []
    try:
        with torch.no_grad():
            at = 0
            for batch in loader.rows(start, stop):
                logits = logits_of(batch.to(device))
                if dtype in ("float16", "bfloat16"):
                    logits = (logits.float() - logits.float().amax(dim=2, keepdim=True)).clamp(min=_FP16_FLOOR)
                stored = logits.to(getattr(torch, dtype)).cpu()
                values = (stored.view(torch.int16) if dtype == "bfloat16" else stored).numpy()
                if table is None:
                    tail = list(values.shape[1:])
                    table = np.lib.format.open_memmap(
                        folder / name, mode="w+", dtype=values.dtype, shape=(stop - start, *tail)
                    )
                table[at : at + len(values)] = values
                at += len(values)
                advance()
            if table is not None:
                table.flush()
    except OSError as error:
        raise CheckpointError(
            f"can't write the cache {folder}: {error.strerror}; set distill.cache.mode=never"
        ) from None
    ranks.wait()
    if rank == 0:
        shards = [
            f"shard-{r:05d}-of-{world:05d}.npy" for r in range(world) if count * r // world < count * (r + 1) // world
        ]
        write_text(folder / MANIFEST, json.dumps(
            {"fingerprint": expected, "shape": [count, *tail], "dtype": dtype, "shards": shards}))  # fmt: skip
    ranks.wait()
    return LogitCache(folder, device, resident_bytes)


def table_bytes(count: int, row: Tensor, dtype: str) -> int:
    """Size of a table whose rows look like `row` [1, M, C, ...]."""
    return count * row[0].numel() * {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
