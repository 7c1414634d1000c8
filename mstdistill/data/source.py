"""The one door: what every source of data tells of itself, and how it hands out a row.

Published sets, a user's own data, data sets in Python and publishers' feature files each fill this in; `instance.py`
behind it turns any row into a validated instance, for training and for `check` alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# The kinds of values that a row can hold for a network.
KINDS = ("image", "audio", "text", "array")
# The class of an instance without one.
UNLABELLED = -1


@dataclass(frozen=True)
class Modality:
    """What rows hold under a name.

    Attributes:
        kind: one of `KINDS`.
        shape: of an array, without the batch; None: of any size, or not known before it is decoded.
    """

    kind: str
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Labels:
    """What rows are labelled with.

    Attributes:
        kind: "classes", a number a row; "several", 0 or 1 a class, or -1 where that isn't known; or "maps", a number a
            pixel.
        names: of the classes, where they have any.
        count: classes are 0 to count - 1; None: a network says how many there are.
        ignore: a number that doesn't count.
    """

    kind: str = "classes"
    names: tuple[str, ...] = ()
    count: int | None = None
    ignore: int | None = None


@dataclass(frozen=True)
class Row:
    """A row as its source holds it, not looked at yet.

    Attributes:
        values: by modality; what isn't there is None, what couldn't be read an exception.
        label: a class, 0s and 1s, or a map; None or -1: no label.
    """

    values: Mapping[str, Any]
    label: Any


class Source(Protocol):
    """Instances from anywhere.

    Attributes:
        name: how people call it: a folder, a repository, a variable.
        modalities: name -> what rows hold.
        labels: what they are labelled with.
        splits: name -> rows, the unlabelled ones included.
        fingerprint: changes when the data change.
        notes: what a person should be told of how the data were read.
    """

    @property
    def name(self) -> str: ...

    @property
    def modalities(self) -> Mapping[str, Modality]: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def splits(self) -> Mapping[str, int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def row(self, split: str, position: int) -> Row:
        """A row; whatever its storage raises is raised."""
        ...

    def called(self, split: str, position: int) -> str:
        """How a person finds a row: a file, or split and position."""
        ...
