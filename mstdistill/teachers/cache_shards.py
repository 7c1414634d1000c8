"""Making a table of logits: each rank computes its part of the shards, everyone reads all.

A shard is whole when it agrees with the digest beside it; what is missing or damaged is computed, alone: a build that
was killed goes on, a bad block on a disk costs a shard. Each shard begins a batch, so that it has the same numbers
whoever computes it, and when. Tables in half precision hold logits minus their row's maximum, which the softmax doesn't
see and which keeps their error small; of several classes at once, where each logit counts by itself, the logits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..data.feeding.batch import Batch
from ..data.feeding.loader import Loader
from ..files import saving, write_text
from .cache import HALVES, MANIFEST, RESIDENT_BYTES, LogitCache, shard_name

SHARD_BYTES = 64 * 1024**2
_FP16_FLOOR = -6e4


def build_cache(
    folder: Path,
    expected: str,
    logits_of: Callable[[Batch], Tensor],
    loader: Loader,
    tail: Sequence[int],
    device: torch.device,
    dtype: str = "float32",
    resident_bytes: float = RESIDENT_BYTES,
    advance: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
    several: bool = False,
) -> LogitCache:
    """The table of every instance of the loader's split, with what was not there yet computed.

    Args:
        expected: fingerprint of what makes it; a table of another one is deleted.
        logits_of: from a batch on the device to logits [B, M, C, ...]; called under no_grad.
        tail: (M, C, ...).
        dtype: "float16" or "bfloat16" (both minus the row maximum, unless `several`), "float32" or "float64".
        advance: called after each batch of this rank.
        say: told what is made anew, and why.
        several: each class is a question of its own.

    Raises:
        CheckpointError: it can't be written.
    """
    count = len(loader.split)
    rows = _agree(folder, expected, (count, *tail), dtype, say)
    shards = -(-count // rows)
    first, last = shards * ranks.rank() // ranks.world_size(), shards * (ranks.rank() + 1) // ranks.world_size()
    for number in range(first, last):
        path = folder / shard_name(number)
        if _whole(path):
            for _ in range(0, min(rows, count - number * rows), loader.batch_size):
                advance()
            continue
        if path.exists():
            say(f"{path} is damaged; computing it again")
        start, stop = number * rows, min((number + 1) * rows, count)
        with torch.no_grad():
            _write(path, [_stored(logits_of(b.to(device)), dtype, several, advance) for b in loader.rows(start, stop)])
    ranks.wait()
    return LogitCache(folder, device, resident_bytes)


def _agree(folder: Path, expected: str, shape: Sequence[int], dtype: str, say: Callable[[str], None]) -> int:
    """Rows of a shard, as this table's manifest says; a table of something else is deleted."""
    path = folder / MANIFEST
    if ranks.rank() == 0:
        try:
            manifest = json.loads(path.read_text())
            why = "" if manifest["fingerprint"] == expected else "it is of other teachers, masks or data"
        except FileNotFoundError:
            manifest, why = None, ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            manifest, why = None, f"it is damaged ({type(error).__name__})"
        if why:
            say(f"cache {folder}: {why}; building it anew")
        if manifest is None or why:
            shutil.rmtree(folder, ignore_errors=True)
            whole = shape[0] * int(np.prod(shape[1:])) * getattr(torch, dtype).itemsize
            # as many for each rank, so that they end together
            shards = ranks.world_size() * -(-whole // (SHARD_BYTES * ranks.world_size()))
            rows = max(1, -(-shape[0] // max(1, shards)))
            facts = {"fingerprint": expected, "shape": list(shape), "dtype": dtype, "rows": rows}
            write_text(path, json.dumps(facts))
    ranks.wait()
    return int(json.loads(path.read_text())["rows"])


def _stored(logits: Tensor, dtype: str, several: bool, advance: Callable[[], None]) -> Tensor:
    """A batch's logits as the table holds them."""
    advance()
    if getattr(torch, dtype) in HALVES:
        logits = logits.float() if several else logits.float() - logits.float().amax(dim=2, keepdim=True)
        logits = logits.clamp(_FP16_FLOOR, -_FP16_FLOOR)
    return logits.to(getattr(torch, dtype)).cpu()


def _write(path: Path, parts: Sequence[Tensor]) -> None:
    values = torch.cat(list(parts))
    # NumPy has no bfloat16: its bits
    array: Any = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    with saving(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    write_text(_beside(path), _digest(path))


def _whole(path: Path) -> bool:
    try:
        return _beside(path).read_text() == _digest(path)
    except OSError:
        return False


def _beside(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
