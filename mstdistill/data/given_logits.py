"""Teachers that are only logits: a file of them read beside the instances, as one modality more.

What a file holds, row by row in the order of its split:

    .npy           [N, C], of the training split
    .safetensors   `train`, and perhaps `validation` and `test`: [N, C]; or the k largest alone, as logarithms of
                   probabilities: `train.values` [N, k] with `train.indices` [N, k]; the rest of a row's probability is
                   spread evenly over its other classes

`mstdistill logits` writes the second kind and notes of which data: with others it is refused. Files whose rows have
keys are read by `keyed_logits`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DataError
from .logit_rows import fault, filled
from .scale import Scale
from .split import Split, called, identities, reader

# Rows that are looked at a time.
_ROWS = 65536
# In a file's metadata: fingerprints of the splits whose rows it holds.
MADE_OF = "splits"


def view_of(teacher: str) -> str:
    """The name of a teacher's logits among an instance's tensors."""
    return f"logits of {teacher}"


def are_logits(view: str) -> bool:
    """Whether a tensor of an instance is a teacher's logits."""
    return view.startswith(view_of(""))


class Logits(Protocol):
    """A teacher's logits, of splits that it knows.

    Attributes:
        splits: those that it has rows for.
        fingerprint: changes when they do.
    """

    splits: tuple[str, ...]
    fingerprint: str

    def check(self, name: str, split: Split, num_classes: int) -> None:
        """Raises DataError for rows that can't be a split's logits."""
        ...

    def rows(self, name: str, index: np.ndarray, num_classes: int) -> Tensor:
        """[B, C] logits of these instances of a split; zeros where it has none of the split."""
        ...


class GivenLogits:
    """A file of logits in the order of its splits' rows.

    Attributes:
        splits: those that it has rows for.
        fingerprint: a hash of its bytes.

    Raises:
        DataError: it can't be read, or holds no logits of this form.
    """

    def __init__(self, path: str, owner: str) -> None:
        self.path, self.owner = Path(path).expanduser(), owner
        self._tables: dict[str, Tensor] = {}
        self._made_of: dict[str, str] = {}
        try:
            self.fingerprint = hash_of(self.path)
            if self.path.suffix == ".npy":
                self._tables = {"train": torch.from_numpy(np.load(self.path, mmap_mode="c", allow_pickle=False))}
            elif self.path.suffix == ".safetensors":
                with safe_open(self.path, framework="pt") as file:
                    self._tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    self._made_of = json.loads((file.metadata() or {}).get(MADE_OF, "{}"))
            else:
                raise DataError(f"{owner}: {path}: logits are read from .safetensors and .npy")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise DataError(f"{owner}: {path} can't be read as logits ({reason})") from None
        self.splits = tuple(name for name in ("train", "validation", "test") if self._has(name))
        if "train" not in self.splits:
            raise DataError(f"{owner}: {path} has no tensor 'train' [N, C]; it has {', '.join(self._tables) or 'none'}")

    def _has(self, split: str) -> bool:
        return split in self._tables or {f"{split}.values", f"{split}.indices"} <= self._tables.keys()

    def check(self, name: str, split: Split, num_classes: int) -> None:
        """Whether the rows of a split can be its logits.

        Raises:
            DataError: made of other data, another number of instances or classes, or numbers that are none.
        """
        where = f"{self.owner}: {self.path} {name}"
        made_of = self._made_of.get(name)
        if made_of is not None and made_of != split.fingerprint:
            raise DataError(
                f"{where}: logits of other data, or of another cut of them; make them anew: mstdistill logits"
            )
        parts = [self._tables[key] for key in (name, f"{name}.values", f"{name}.indices") if key in self._tables]
        for part in parts:
            if part.dim() != 2 or len(part) != len(split):
                raise DataError(f"{where}: shape {list(part.shape)}; the data have {len(split):,} instances")
        if name in self._tables:
            if parts[0].shape[1] != num_classes or not parts[0].is_floating_point():
                raise DataError(f"{where}: [{', '.join(map(str, parts[0].shape))}] {_dtype(parts[0])}; wanted are "
                                f"[{len(split)}, {num_classes}] floating numbers, one a class")  # fmt: skip
        elif parts[0].shape != parts[1].shape or parts[1].is_floating_point():
            raise DataError(f"{where}: values {list(parts[0].shape)} and indices {list(parts[1].shape)} "
                            f"{_dtype(parts[1])}; wanted are as many whole numbers as values")  # fmt: skip
        for start in range(0, len(split), _ROWS):
            self._check_rows(where, name, range(start, min(start + _ROWS, len(split))), split, num_classes)

    def _check_rows(self, where: str, name: str, rows: range, split: Split, num_classes: int) -> None:
        piece = slice(rows.start, rows.stop)
        sparse = name not in self._tables
        values = self._tables[f"{name}.values" if sparse else name][piece]
        found = fault(values, self._tables[f"{name}.indices"][piece] if sparse else None, num_classes)
        if found is not None:
            at = rows.start + found[0]
            raise DataError(f"{where}: row {at} ({called(split, at)}): {found[1]}")

    def rows(self, name: str, index: np.ndarray, num_classes: int) -> Tensor:
        """[B, C] logits in float32, or in float64 where the file has that; zeros where it has none of the split."""
        at = torch.from_numpy(np.asarray(index, dtype=np.int64))
        if name in self._tables:
            found = self._tables[name][at]
            return found if found.dtype == torch.float64 else found.float()
        if name not in self.splits:
            return torch.zeros(len(at), num_classes)
        return filled(self._tables[f"{name}.values"][at], self._tables[f"{name}.indices"][at], num_classes)


class WithLogits:
    """A split whose instances have logits of teachers beside their modalities.

    Args:
        name: of the split: "train", "validation" or "test".
        given: teacher -> its file.
    """

    def __init__(self, split: Split, name: str, given: Mapping[str, Logits], num_classes: int) -> None:
        self.split, self.name, self.num_classes = split, name, num_classes
        self.given = {view_of(teacher): file for teacher, file in given.items()}
        for file in given.values():
            if name in file.splits:
                file.check(name, split, num_classes)
        # views without a single row here: what nobody can judge
        self.lacks = frozenset(view for view, file in self.given.items() if name not in file.splits)
        self.deterministic = split.deterministic
        files = "".join(f"{view}:{file.fingerprint}" for view, file in sorted(self.given.items()))
        self.fingerprint = hashlib.sha256((split.fingerprint + files).encode()).hexdigest()
        self._read = reader(split)

    def __len__(self) -> int:
        return len(self.split)

    def called_at(self, position: int) -> str:
        """See `split.called`."""
        return called(self.split, position)

    def identities(self) -> Sequence[str | None] | None:
        """See `split.identities`."""
        return identities(self.split)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """See `split.Stored`."""
        return getattr(self.split, "scales", {})

    @property
    def present(self) -> Mapping[str, np.ndarray]:
        """See `present.presence`."""
        return getattr(self.split, "present", {})

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """See `split.Split`."""
        inputs, label = self.split.fetch(index, [name for name in modalities if name not in self.given])
        return self._with(inputs, index, modalities), label

    def stored(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """See `split.Stored`."""
        inputs, label = self._read(index, [name for name in modalities if name not in self.given])
        return self._with(inputs, index, modalities), label

    def _with(self, inputs: Mapping[str, Tensor], index: np.ndarray, modalities: Sequence[str]) -> dict[str, Tensor]:
        own = {name: self.given[name].rows(self.name, index, self.num_classes)
               for name in modalities if name in self.given}  # fmt: skip
        return {**inputs, **own}


def without_logits(split: Split) -> Split:
    """The instances that a split's logits lie beside; others as they are."""
    return split.split if isinstance(split, WithLogits) else split


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
