"""Writing a network's logits as a file that another run takes for a teacher: by order, read by `data.given_logits`, or
by key, read by `data.keyed_logits`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import ranks
from ..data.feeding.batch import Batch
from ..data.feeding.loader import Loader
from ..data.given_logits import MADE_OF, without_logits
from ..data.keyed_file import write_keyed
from ..files import write_tensors
from .cache import LogitCache, fingerprint
from .cache_shards import build_cache

# What a file by key calls logits of all classes.
_DENSE = "logits"


@torch.no_grad()
def write_logits(
    path: Path, module: nn.Module, forward: Callable[[Batch], Tensor], loaders: Mapping[str, Loader], num_classes: int,
    device: torch.device, advance: Callable[[], None], say: Callable[[str], None], top: int | None = None,
    about: Mapping[str, str] | None = None, keys: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Every process computes its part of the rows; the first one writes the file, whole or not at all.

    Args:
        forward: from a batch on the device to logits [B, C].
        loaders: by split.
        top: keep the k largest classes, as logarithms of probabilities; None: all, as they are.
        about: further metadata.
        keys: what the instances of all splits are called, one after the other: they are written by key; None: by order.
    """
    parts = path.with_name(f".{path.name}.parts")
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, loader in loaders.items():
        expected = fingerprint((name, loader.split.fingerprint), {"network": module})
        table = build_cache(parts / name, expected, lambda batch: forward(batch).unsqueeze(1), loader, (1, num_classes),
                            device, "float32", 0.0, advance, say)  # fmt: skip
        if ranks.rank() == 0:
            pieces[name] = _tensors(table, top)
    if ranks.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        if keys is not None:
            kinds = next(iter(pieces.values()))
            write_keyed(path, keys, {kind: [piece[kind].numpy() for piece in pieces.values()] for kind in kinds})
        else:
            made_of = json.dumps({name: without_logits(loader.split).fingerprint for name, loader in loaders.items()})
            tensors = {name if kind == _DENSE else f"{name}.{kind}": x for name, piece in pieces.items()
                       for kind, x in piece.items()}  # fmt: skip
            write_tensors(path, tensors, {**(about or {}), MADE_OF: made_of})
        shutil.rmtree(parts, ignore_errors=True)
    ranks.wait()


def _tensors(table: LogitCache, top: int | None) -> dict[str, Tensor]:
    """A split's logits, or the values and indices of the largest."""
    logits = table.gather(torch.from_numpy(np.arange(len(table))))[:, 0].cpu()
    if top is None or top >= logits.shape[1]:
        return {_DENSE: logits.contiguous()}
    found = logits.log_softmax(dim=1).topk(top, dim=1)
    return {"values": found.values.contiguous(), "indices": found.indices.to(torch.int32).contiguous()}
