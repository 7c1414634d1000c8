"""Teachers that are only logits, by key: a file whose rows are found by what instances are called.

The file may hold more rows than the data, in any order, and those of all splits together; see `sources.keyed_tables`
for what it may be. Keys are compared by their text. Training needs each of its rows; of validation and test nearly none
means that they weren't given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..sections.logits import ORDERED
from .given_logits import GivenLogits, Logits, WithLogits, hash_of
from .logit_rows import fault, filled
from .sources.keyed_tables import read_keyed
from .split import Split, called, identities
from .task import Task

# A split of which no larger share is in the file isn't given by it.
_STRAY = 0.05
# Numbers that are looked at together.
_LOOKED_AT = 2**23

Names = Callable[[Split], Sequence[str | None] | None]


@dataclass(frozen=True)
class LogitsFile:
    """A teacher that is a file.

    Attributes:
        key: the column of its keys, for those that have any.
    """

    teacher: str
    path: str
    key: str = "key"


class KeyedLogits:
    """A file of logits by key, matched with the instances of splits.

    Args:
        file: which.
        names: split -> what its instances are called, see `split.identities`.
        task: its classes.

    Attributes:
        splits: those that it has rows for.
        fingerprint: a hash of its bytes, of the keys' name, and of which row is which instance's.
        told: a line on what was matched.

    Raises:
        DataError: it can't be read, a key stands twice in it, or a split's instances lack theirs.
    """

    def __init__(
        self, file: LogitsFile, splits: Mapping[str, Split], names: Mapping[str, Sequence[str | None]], task: Task
    ) -> None:
        self.owner, self.path = f"teacher {file.teacher!r}", Path(file.path).expanduser()
        try:
            self._table = read_keyed(self.path, file.key, task.class_names, task.num_classes)
        except DataError as error:
            raise DataError(f"{self.owner}: {error}") from None
        row_of = self._rows_by_key(self._table.keys)
        self._at = {name: np.array([-1 if key is None else row_of.get(key, -1) for key in names[name]], dtype=np.int64)
                    for name in splits}  # fmt: skip
        self.splits = tuple(name for name, rows in self._at.items()
                            if name == "train" or np.mean(rows >= 0) > _STRAY)  # fmt: skip
        for name in self.splits:
            self._complete(name, splits[name], names[name])
        self.told = self._matched(len(row_of), names)
        digest = hashlib.sha256(f"{hash_of(self.path)} {file.key}".encode())
        for name in self.splits:
            digest.update(name.encode() + self._at[name].tobytes())
        self.fingerprint = digest.hexdigest()

    def _rows_by_key(self, keys: Sequence[str | None]) -> dict[str, int]:
        found: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key is None:
                raise DataError(f"{self.owner}: {self.path}: row {row} has no key")
            if found.setdefault(key, row) != row:
                raise DataError(f"{self.owner}: {self.path}: key {key!r} stands twice, in rows {found[key]} and {row}; "
                                "leave one of them")  # fmt: skip
        return found

    def _complete(self, name: str, split: Split, names: Sequence[str | None]) -> None:
        missing = np.flatnonzero(self._at[name] < 0)
        if not len(missing):
            return
        first = int(missing[0])
        shown = f"{names[first]!r}" if names[first] is not None else "one without a name"
        known = self._table.keys
        like = f" (the file's first key: {known[0]!r})" if known else ""
        mend = "or leave the instances out" if name == "train" else f"or take all of {name}'s rows out of the file"
        counted = f"{len(missing):,} of {len(names):,} {name} instances"
        raise DataError(f"{self.owner}: {self.path} has no row for {counted}; the first is {shown}, "
                        f"{called(split, first)}{like}; add their rows, {mend}")  # fmt: skip

    def _matched(self, rows: int, names: Mapping[str, Sequence[str | None]]) -> str:
        parts = [f"{name} {len(at):,}" if name in self.splits else f"{name} not given" for name, at in self._at.items()]
        keys = [key for name in self.splits for key in names[name]]
        shared = len(keys) - len(set(keys))
        line = f"{self.owner}: logits by key of {', '.join(parts)}; {rows - len(set(keys)):,} rows of others"
        return line + (f"; {shared:,} instances share their key with an earlier one" if shared else "")

    def check(self, name: str, split: Split, num_classes: int) -> None:
        """Whether a split's rows hold logits.

        Raises:
            DataError: numbers that are none; it names the row's key.
        """
        at, table = self._at[name], self._table
        step = max(1, _LOOKED_AT // max(table.values.shape[1], 1))
        for start in range(0, len(at), step):
            rows = torch.from_numpy(at[start : start + step])
            indices = None if table.indices is None else table.indices.take(rows)
            found = fault(table.values.take(rows), indices, num_classes)
            if found is not None:
                row = int(rows[found[0]])
                raise DataError(f"{self.owner}: {self.path}: key {table.keys[row]!r} (row {row}), of "
                                f"{called(split, start + found[0])} in {name}: {found[1]}")  # fmt: skip

    def rows(self, name: str, index: np.ndarray, num_classes: int) -> Tensor:
        """[B, C] logits in float32, or in float64 where an .npz has that; zeros where it has none of the split."""
        if name not in self.splits:
            return torch.zeros(len(index), num_classes)
        rows = torch.from_numpy(self._at[name][np.asarray(index, dtype=np.int64)])
        values = self._table.values.take(rows)
        if self._table.indices is not None:
            return filled(values, self._table.indices.take(rows), num_classes)
        return values if values.dtype == torch.float64 else values.float()


def with_logits(
    splits: Mapping[str, Split], files: Sequence[LogitsFile], task: Task, nameless: str, say: Callable[[str], None],
    names: Names = identities,
) -> dict[str, Split]:  # fmt: skip
    """Splits whose instances have the logits of these teachers beside their modalities.

    Args:
        nameless: why nothing names the instances, and the mend, for people.
        names: what the instances of a split are called.

    Raises:
        DataError: a file that doesn't fit; in one line.
    """
    given: dict[str, Logits] = {}
    known: dict[str, Sequence[str | None]] = {}
    for file in files:
        owner = f"teacher {file.teacher!r}"
        if Path(file.path).suffix in ORDERED:
            given[file.teacher] = GivenLogits(file.path, owner)
            continue
        for name, split in splits.items() if not known else ():
            found = names(split)
            if found is None:
                raise DataError(f"{owner}: {file.path}: logits by key, and {nameless}")
            known[name] = found
        keyed = KeyedLogits(file, splits, known, task)
        say(keyed.told)
        given[file.teacher] = keyed
    return {name: WithLogits(split, name, given, task.num_classes) for name, split in splits.items()}
