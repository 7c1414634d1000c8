"""Logits of frozen networks as a memory-mapped table [N, M, C], computed once: in stage 3 they are constants.

A table lies in shards of rows (see `cache_shards`, which makes them) and is known by the fingerprint of what made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..state import state_of

MANIFEST = "cache.json"
# On the CPU, tables up to this size are held in memory; larger ones are read from disk, which is memory-mapped anyway.
RESIDENT_BYTES = 256 * 1024**2
HALVES = (torch.float16, torch.bfloat16)


def fingerprint(parts: Iterable[object], modules: Mapping[str, nn.Module]) -> str:
    """A hash of facts and of networks' every tensor."""
    digest = hashlib.sha256(repr(tuple(parts)).encode())
    for name, module in sorted(modules.items()):
        for key, tensor in state_of(module, name).items():
            digest.update(f"{name}/{key}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                          if tensor.dim() else repr(tensor.item()).encode())  # fmt: skip
    return digest.hexdigest()


def shard_name(number: int) -> str:
    """The file of a table's shard, beside the table's manifest."""
    return f"shard-{number:05d}.npy"


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
        shards = -(-self.shape[0] // manifest["rows"]) if self.shape[0] else 0
        self._parts = [np.load(folder / shard_name(number), mmap_mode="r") for number in range(shards)]
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


def table_bytes(count: int, row: Tensor, dtype: str) -> int:
    """Size of a table whose rows look like `row` [1, M, C, ...]."""
    return count * row[0].numel() * {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
