"""Modality dropout: a teacher that may miss a modality is trained on instances from which some are hidden.

Which ones follows from the seed, the teacher's name, the epoch and the instance alone, so that processes, batches and
resumed runs hide the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.feeding.batch import Batch
from ..engine.seeding import named_seed
from ..routing import hash_uniform
from ..teachers.tap import Teacher


def hidden(teacher: Teacher, batch: Batch, seed: int, epoch: int) -> Mapping[str, Tensor]:
    """The batch's inputs with zeros where a modality is hidden from this teacher; at least one of an instance's stays.

    Args:
        epoch: of the stage, from 0.
    """
    chance = teacher.modality_dropout
    if not chance:
        return batch.inputs
    draws = hash_uniform(batch.index, len(teacher.modalities), named_seed(seed, "hidden", teacher.name, epoch) % 2**31)
    there = torch.stack([
        batch.present.get(name, torch.ones_like(batch.index, dtype=torch.bool)) for name in teacher.modalities
    ], dim=1)  # fmt: skip
    draws = draws.masked_fill(~there, -1.0)
    kept = (draws >= chance) | (draws == draws.amax(dim=1, keepdim=True))
    out = dict(batch.inputs)
    for number, name in enumerate(teacher.modalities):
        x = batch.inputs[name]
        out[name] = torch.where(kept[:, number].view(-1, *(1,) * (x.dim() - 1)), x, torch.zeros_like(x))
    return out
