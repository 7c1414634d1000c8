"""Instances that can be fetched by position: what every source of data gives and every loader takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .scale import Scale


@runtime_checkable
class Split(Protocol):
    """Instances that can be fetched by position.

    Attributes:
        fingerprint: a hash of the contents.
        deterministic: whether an instance is the same at each reading (no augmentation).
    """

    fingerprint: str
    deterministic: bool

    def __len__(self) -> int: ...

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Modalities and labels of these instances."""
        ...


@runtime_checkable
class Stored(Protocol):
    """A split that can give its instances as stored, smaller than networks take them.

    Attributes:
        scales: by modality, from stored values to the networks'.
    """

    @property
    def scales(self) -> Mapping[str, Scale]: ...

    def stored(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """As `Split.fetch`, before scaling."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A split that lies on a device already, checked and with int64 labels.

    Attributes:
        device: where.
    """

    device: torch.device

    def pick(self, rows: Tensor, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The instances at these positions [B] on the device."""
        ...


def reader(split: Split) -> Callable[[np.ndarray, Sequence[str]], tuple[dict[str, Tensor], Tensor]]:
    """How instances are read for a loader: as stored where the split can."""
    return split.stored if isinstance(split, Stored) else split.fetch


def called(split: Split, position: int) -> str:
    """How a person finds an instance: a file or a key where the split knows one, else its number."""
    known: Callable[[int], str] | None = getattr(split, "called_at", None)
    return known(position) if known is not None else f"instance {position}"


def identities(split: Split) -> Sequence[str | None] | None:
    """[N] what names each instance apart from its place (a publisher's file, an id), None for one without a name; or
    None: nothing does."""
    known: Callable[[], Sequence[str | None] | None] | None = getattr(split, "identities", None)
    return known() if known is not None else None


class Subset:
    """Some instances of a split, renumbered from 0."""

    def __init__(self, split: Split, index: np.ndarray) -> None:
        self.split, self.index = split, np.asarray(index, dtype=np.int64)
        self._read = reader(split)
        self.deterministic = split.deterministic
        digest = hashlib.sha256(split.fingerprint.encode() + self.index.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def called_at(self, position: int) -> str:
        """See `called`."""
        return called(self.split, int(self.index[position]))

    def identities(self) -> Sequence[str | None] | None:
        """See `identities`."""
        names = identities(self.split)
        return None if names is None else [names[i] for i in self.index.tolist()]

    @property
    def lacks(self) -> frozenset[str]:
        """See `given_logits.WithLogits`."""
        return getattr(self.split, "lacks", frozenset())

    @property
    def scales(self) -> Mapping[str, Scale]:
        """See `Stored`."""
        return getattr(self.split, "scales", {})

    @property
    def present(self) -> Mapping[str, np.ndarray]:
        """See `present.presence`."""
        found: Mapping[str, np.ndarray] = getattr(self.split, "present", {})
        return {name: values[self.index] for name, values in found.items()}

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        return self.split.fetch(self.index[index], modalities)

    def stored(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """See `Stored`."""
        return self._read(self.index[index], modalities)
