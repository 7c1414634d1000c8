"""A user's own data: a `datasets` folder, files, or a hub repository with raw columns and a column of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import DataSettings
from ...errors import DataError, nearest
from ..decode.value import decode, kind_of
from ..prepared.plan import Item
from ..task import SPLITS, Task
from .opening import Raw, open_raw

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# A column with more classes is no label: an id, a measurement.
MOST_CLASSES = 20_000
# What prepared data call their own columns.
RESERVED = ("label", "part", "key")
# Which of the training instances stand in for a test split that isn't there: every so manieth of a permutation.
_HELD_OUT = 5
_SEED = 19980427

TASK = Task(
    name="own",
    title="your own data: data.dir names a `datasets` folder, files, or hub:org/name",
    modalities={},
    num_classes=0,
)


@dataclass
class OwnData:
    """Raw data, resolved: which column is which modality, which instance belongs where.

    Attributes:
        task: with modalities (shapes unknown as yet) and classes.
        kinds: modality -> "image", "audio", "text" or "array".
        rows: reads an instance's raw columns.
        items: every labelled instance, with its class and part.
        parted: whether the data come with splits of their own.
        fingerprint: changes when the data change.
        notes: what a person should know.
    """

    task: Task
    kinds: dict[str, str]
    rows: RawRows
    items: list[Item]
    parted: bool
    fingerprint: str
    streaming: bool
    notes: list[str] = field(default_factory=list)

    def first(self, modality: str) -> Any:
        """The first readable value of a modality.

        Raises:
            DataError: none of the first instances is readable.
        """
        error: DataError | None = None
        for item in self.items[:8]:
            try:
                return self.rows.decoded(item.source, modality)
            except DataError as found:
                error = error or found
        raise error or DataError("the data are empty")


class RawRows:
    """Raw values by (split, position); travels to other processes. A streamed split is read in order."""

    def __init__(self, raw: Raw, columns: Mapping[str, str], kinds: Mapping[str, str]) -> None:
        self.columns, self.kinds, self.streaming = dict(columns), dict(kinds), raw.streaming
        wanted = sorted(set(columns.values()))
        self.splits = {name: undecoded(data).select_columns(wanted) for name, data in raw.splits.items()}
        self._running: tuple[str, int, Iterator[Any]] | None = None
        self._last: tuple[tuple[str, int], Any] | None = None

    def decoded(self, source: tuple[str, int], modality: str) -> Any:
        """A modality of an instance; see `media.decode`."""
        column = self.columns[modality]
        split, position = source
        return decode(self.kinds[modality], self._row(source)[column], f"{column} of {split}/{position}")

    def _row(self, source: tuple[str, int]) -> Any:
        if self._last is None or self._last[0] != source:
            self._last = (source, self._stream(source) if self.streaming else self.splits[source[0]][source[1]])
        return self._last[1]

    def _stream(self, source: tuple[str, int]) -> Any:
        split, position = source
        if self._running is None or self._running[0] != split or self._running[1] > position:
            self._running = (split, position, iter(self.splits[split].skip(position)))
        _, at, rows = self._running
        for _ in range(position - at):  # instances without a label
            next(rows)
        self._running = (split, position + 1, rows)
        return next(rows)


def undecoded(data: Any) -> Any:
    """The same rows with pictures and sounds as bytes or paths: `media` decodes them, and says where it can't."""
    import datasets

    for name, feature in (data.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            data = data.cast_column(name, type(feature)(decode=False))
    return data


def open_own(settings: DataSettings) -> OwnData:
    """Open the data that the recipe names.

    Raises:
        DataError: nothing there, no usable column, no label, or splits that can't be told apart.
    """
    if settings.dir is None:
        raise DataError("task own: say where your data are, data.dir=FOLDER or data.dir=hub:org/name")
    raw = open_raw(settings.dir, settings.streaming)
    raw, notes = named_splits(raw, settings.dir)
    columns, kinds = choose_columns(raw, settings, settings.dir)
    labels = {name: read_labels(data, settings.label) for name, data in raw.splits.items()}
    names, numbers = resolve_classes(raw, labels, settings.label, settings.dir)
    items, parted, more = _items(numbers)
    digest = hashlib.sha256(raw.identity.encode())
    for name, values in numbers.items():
        digest.update(name.encode() + values.tobytes())
    digest.update(repr(sorted(columns.items())).encode())
    task = Task(TASK.name, settings.dir, dict.fromkeys(columns, ()), len(names), class_names=tuple(names))
    return OwnData(task, kinds, RawRows(raw, columns, kinds), items, parted, digest.hexdigest(), raw.streaming,
                   notes + more)  # fmt: skip


def named_splits(raw: Raw, location: str) -> tuple[Raw, list[str]]:
    """Splits under the names train, validation and test, or `all` where there is one only."""
    if len(raw.splits) == 1:
        return Raw({"all": next(iter(raw.splits.values()))}, raw.streaming, raw.identity), []
    found = {
        ours: next(theirs for theirs in known if theirs in raw.splits)
        for ours, known in _SPLIT_NAMES.items() if any(theirs in raw.splits for theirs in known)
    }  # fmt: skip
    if "train" not in found:
        raise DataError(f"{location} has splits {', '.join(raw.splits)} and none of them is train; make a folder with "
                        "one split, or with train, validation and test")  # fmt: skip
    others = sorted(set(raw.splits) - set(found.values()))
    notes = [f"splits {', '.join(others)} aren't used"] if others else []
    return Raw({ours: raw.splits[theirs] for ours, theirs in found.items()}, raw.streaming, raw.identity), notes


def choose_columns(raw: Raw, settings: DataSettings, location: str) -> tuple[dict[str, str], dict[str, str]]:
    """Modality -> column, and modality -> kind."""
    features = _features(next(iter(raw.splits.values())), location)
    if settings.label not in features:
        raise DataError(f"{location} has no column {settings.label!r} for the classes (data.label); "
                        f"{nearest(settings.label, features)}")  # fmt: skip
    usable = {name: kind for name, feature in features.items() if name != settings.label and (kind := kind_of(feature))}
    if settings.columns is None:
        usable = {name: kind for name, kind in usable.items() if name not in RESERVED}
        return {name: name for name in usable}, usable
    for modality, column in settings.columns.items():
        if modality in RESERVED or "@" in modality:
            raise DataError(f"data.columns.{modality}: choose another name for this modality")
        if column not in features:
            raise DataError(f"data.columns.{modality}: {location} has no column {column!r}; {nearest(column, usable)}")
        if column not in usable:
            raise DataError(f"data.columns.{modality}: column {column!r} is no picture, sound, text or array")
    return dict(settings.columns), {modality: usable[column] for modality, column in settings.columns.items()}


def _features(data: Any, location: str) -> Mapping[str, Any]:
    features = data.features
    if features is None:  # streamed, and the repository doesn't say
        features = data._resolve_features().features
    if not features:
        raise DataError(f"{location} has no columns")
    return dict(features)


def read_labels(data: Any, column: str) -> list[Any]:
    """A split's labels in order; nothing else of it is read."""
    only = data.select_columns([column])
    if hasattr(only, "num_rows"):
        return list(only[column])
    return [row[column] for row in only]


def resolve_classes(
    raw: Raw, labels: Mapping[str, Sequence[Any]], column: str, location: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Class names, and each split's classes as numbers; -1 for an instance without a label."""
    import datasets

    feature = _features(next(iter(raw.splits.values())), location)[column]
    if isinstance(feature, datasets.ClassLabel):
        numbers = {
            k: np.array([-1 if v is None else v for v in values], dtype=np.int64) for k, values in labels.items()
        }
        return list(feature.names), numbers
    known: set[Any] = set()
    for values in labels.values():
        known.update(v if _hashable(v) else repr(v) for v in values if v is not None)
    wrong = next((v for v in known if isinstance(v, float) or not isinstance(v, (int, str, bool))), None)
    if wrong is not None:
        raise DataError(f"{location}: column {column!r} holds {wrong!r}: classes are whole numbers or words")
    if isinstance(next(iter(known), None), int):
        known.discard(-1)  # the usual sign for a label that is kept back
    if len(known) < 2 or len(known) > MOST_CLASSES:
        raise DataError(f"{location}: column {column!r} holds {len(known):,} different values; classes are wanted")
    names = sorted(known)
    number = {name: i for i, name in enumerate(names)}
    return [str(name) for name in names], {
        split: np.array([number.get(v, -1) for v in values], dtype=np.int64) for split, values in labels.items()
    }


def _hashable(value: Any) -> bool:
    return isinstance(value, (int, str, bool, float))


def _items(numbers: Mapping[str, np.ndarray]) -> tuple[list[Item], bool, list[str]]:
    """Labelled instances with their parts. A test split that is missing, or whose labels are kept back, is held out of
    the training part; a missing validation split is cut where the data are read."""
    notes = []
    numbers = dict(numbers)
    for split in ("validation", "test"):
        if split in numbers and not (numbers[split] >= 0).any():
            notes.append(f"the {split} split has no labels and isn't used")
            del numbers[split]
    dropped = sum(int((values < 0).sum()) for values in numbers.values())
    if dropped:
        notes.append(f"{dropped:,} instances have no label and are left out")
    parted = len(numbers) > 1
    items = []
    for split, values in numbers.items():
        rows = np.flatnonzero(values >= 0)
        held: set[int] = set()
        if parted and split == "train" and "test" not in numbers:
            order = np.random.default_rng(_SEED).permutation(rows)
            held = set(order[: len(rows) // _HELD_OUT].tolist())
            notes.append(f"no test split: {len(held):,} of the {len(rows):,} training instances are held out for it")
        part = SPLITS.index(split) if parted else -1
        items += [
            Item(f"{split}/{row}", (split, int(row)), int(values[row]), SPLITS.index("test") if row in held else part)
            for row in rows.tolist()
        ]
    return items, parted, notes
