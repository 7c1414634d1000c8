"""Instances that lack a modality: which ones they are, and what is left of a split.

A split that knows of some says so in `present`: modality -> [N] bool, for modalities that some instance lacks. What
isn't there is read as zeros; who can't see it leaves the instance out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .split import Split, Subset, called
from .view import modality_of

# Instances that are named to a person.
_NAMED = 3


def presence(split: Split) -> Mapping[str, np.ndarray]:
    """Modality -> [N] bool, of those that some instances of the split lack."""
    found: Mapping[str, np.ndarray] = getattr(split, "present", {})
    return {name: values for name, values in found.items() if not values.all()}


def absent(value: Any) -> bool:
    """Whether a row of raw data holds nothing where a value could be: None, an empty text, list or file, or the path of
    a file that isn't there."""
    if value is None:
        return True
    if isinstance(value, Mapping):
        if "array" in value:
            return absent(value["array"])
        return not value.get("bytes") and _no_file(value.get("path"))
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (bytes, list, tuple, np.ndarray)) and len(value) == 0


def _no_file(path: Any) -> bool:
    from pathlib import Path

    return not path or ("://" not in str(path) and not Path(str(path)).exists())


def see(present: Mapping[str, Tensor], modalities: Sequence[str], some: bool = False) -> Tensor | None:
    """[B] which instances a network can see; None: all of them.

    Args:
        present: modality -> [B] bool, as a batch holds them.
        modalities: what the network sees.
        some: one of them is enough.
    """
    known = [present[name] for name in modalities if name in present]
    if not known or (some and len(known) < len(modalities)):
        return None
    together = torch.stack(known)
    return together.any(dim=0) if some else together.all(dim=0)


def with_target(split: Split, target: str, name: str) -> tuple[Split, list[str]]:
    """A split without the instances that lack the student's modality, and how a person finds those.

    Raises:
        DataError: nobody has it.
    """
    there = presence(split).get(target)
    if there is None:
        return split, []
    if not there.any():
        raise DataError(f"{name}: no instance has {modality_of(target)!r}, which the student sees")
    return Subset(split, np.flatnonzero(there)), [called(split, int(i)) for i in np.flatnonzero(~there)]


def told(left: Sequence[str], target: str, name: str) -> str:
    """A line on instances that were left out."""
    some = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
    return f"{name}: {len(left):,} instances lack {modality_of(target)}, the target, and are left out: {some}"


def completeness(split: Split, name: str) -> list[str]:
    """A line on each modality that some instances lack."""
    return [f"{name}: {int(values.sum()):,} of {len(values):,} instances have {modality_of(view)}"
            for view, values in presence(split).items()]  # fmt: skip
