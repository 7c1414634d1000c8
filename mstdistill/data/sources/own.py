"""A user's own data: a `datasets` folder, files, or a hub repository with raw columns and a column of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import DataSettings
from ...errors import DataError, nearest
from ..decode.value import kind_of
from ..instance import value
from ..prepared.plan import Item
from ..present import absent
from ..source import Labels, Modality, Row
from ..task import SPLITS, Task
from . import labels as classes
from . import several
from .keys import Naming, own_names
from .lists import refuse_several
from .opening import Raw, open_raw

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# What prepared data call their own columns.
RESERVED = ("label", "part", "key")
# Which of the training instances stand in for a test split that isn't there: every so manieth of a permutation.
_HELD_OUT = 5
_SEED = 19980427
# So many unreadable rows are looked past for a first readable one, beside the share that may be broken.
_LOOKED_PAST = 8

TASK = Task(
    name="own",
    title="your own data: data.dir names a `datasets` folder, files, or hub:org/name",
    modalities={},
    num_classes=0,
)


@dataclass
class OwnData:
    """Raw data, resolved: which column is which modality, which instance belongs where; a `Source`.

    Attributes:
        task: with modalities (shapes unknown as yet) and classes.
        modalities: name -> kind.
        numbers: split -> class of each row, -1 where it has none; of several classes at once [N, C] of 0, 1 and -1.
        rows: reads an instance's raw columns.
        items: every labelled instance, with its class and part.
        parted: whether the data come with splits of their own.
        fingerprint: changes when the data change.
        notes: what a person should know.
        max_broken: share of instances that may be unreadable.
        lacking: whether instances may lack a modality.
        naming: what their own column calls them; None: they have none (`data.key`).
    """

    task: Task
    modalities: dict[str, Modality]
    numbers: dict[str, np.ndarray]
    rows: RawRows
    items: list[Item]
    parted: bool
    fingerprint: str
    streaming: bool
    notes: list[str] = field(default_factory=list)
    max_broken: float = 0.02
    lacking: bool = False
    naming: Naming | None = None

    @property
    def name(self) -> str:
        """Where the data lie."""
        return self.task.title

    @property
    def kinds(self) -> dict[str, str]:
        """Modality -> "image", "audio", "text" or "array"."""
        return {name: modality.kind for name, modality in self.modalities.items()}

    @property
    def labels(self) -> Labels:
        """The classes, by name."""
        return Labels("several" if self.task.multilabel else "classes", self.task.class_names, self.task.num_classes)

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split that is used."""
        return {name: len(numbers) for name, numbers in self.numbers.items()}

    def row(self, split: str, position: int) -> Row:
        """See `Source`."""
        raw = self.rows.raw((split, position))
        number = self.numbers[split][position]
        label = number if number.ndim else int(number)
        return Row({name: raw[column] for name, column in self.rows.columns.items()}, label)

    def called(self, split: str, position: int) -> str:
        """See `Source`."""
        return f"{split}/{position}"

    def first(self, modality: str) -> Any:
        """The first readable value of a modality.

        Raises:
            DataError: none of the first instances is readable, or nobody has it.
        """
        errors: list[DataError] = []
        for item in self.items:
            if self.lacking and self.rows.absent(item.source, modality):
                continue
            if len(errors) == _LOOKED_PAST + int(self.max_broken * len(self.items)):
                break
            try:
                return self.rows.decoded(item.source, modality)
            except DataError as found:
                errors.append(found)
        if not errors and self.items:
            raise DataError(f"{self.name}: no instance has {modality!r}; leave it out of the recipe (data.columns)")
        raise errors[0] if errors else DataError("the data are empty")


class RawRows:
    """Raw values by (split, position); travels to other processes. A streamed split is read in order."""

    def __init__(self, raw: Raw, columns: Mapping[str, str], modalities: Mapping[str, Modality]) -> None:
        self.columns, self.modalities, self.streaming = dict(columns), dict(modalities), raw.streaming
        wanted = sorted(set(columns.values()))
        self.splits = {name: undecoded(data).select_columns(wanted) for name, data in raw.splits.items()}
        self._running: tuple[str, int, Iterator[Any]] | None = None
        self._last: tuple[tuple[str, int], Any] | None = None

    def decoded(self, source: tuple[str, int], modality: str) -> Any:
        """A modality of an instance; see `instance.value`."""
        column = self.columns[modality]
        split, position = source
        where = f"{column} of {split}/{position}"
        try:
            raw = self.raw(source)[column]
        except Exception as error:  # the storage's own kinds
            raw = error
        return value(self.modalities[modality], raw, where)

    def absent(self, source: tuple[str, int], modality: str) -> bool:
        """Whether an instance lacks a modality; what can't be read isn't missing."""
        try:
            return absent(self.raw(source)[self.columns[modality]])
        except Exception:  # the storage's own kinds; `decoded` says it
            return False

    def raw(self, source: tuple[str, int]) -> Any:
        """An instance's raw columns."""
        if self._last is None or self._last[0] != source:
            self._last = (source, self._stream(source) if self.streaming else self.splits[source[0]][source[1]])
        return self._last[1]

    def _stream(self, source: tuple[str, int]) -> Any:
        split, position = source
        if self._running is None or self._running[0] != split or self._running[1] > position:
            self._running = (split, position, iter(self.splits[split].skip(position)))
        _, at, rows = self._running
        try:
            for _ in range(position - at):  # instances without a label
                next(rows)
            self._running = (split, position + 1, rows)
            return next(rows)
        except StopIteration:
            raise DataError(f"{split} ends before row {position}: it changed while it was read; start again") from None


def undecoded(data: Any) -> Any:
    """The same rows with pictures and sounds as bytes or paths: `decode` makes arrays of them, and says where it
    can't."""
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
    opened = open_raw(settings.dir, settings.streaming)
    raw, notes = named_splits(opened, settings.dir)
    columns, modalities = choose_columns(raw, settings, settings.dir)
    lacking = settings.missing == "allow"
    wanted = [*columns.values(), *_labels_of(settings)]
    raw, left_out = complete_splits(raw, wanted, columns, modalities, settings.dir, lacking)
    resolved = _resolved(raw, settings)
    learn = settings.unlabelled == "learn"
    numbers, unlabelled = _labelled_splits(resolved.numbers, learn)
    items, parted, more = _items(numbers, learn)
    digest = hashlib.sha256(raw.identity.encode())
    for name, values in resolved.numbers.items():
        digest.update(name.encode() + values.tobytes())
    digest.update(repr(sorted(columns.items())).encode() + b" unlabelled too" * learn + b" several" * settings.several)
    task = Task(TASK.name, settings.dir, dict.fromkeys(columns, ()), len(resolved.names), class_names=resolved.names,
                multilabel=settings.several)  # fmt: skip
    used = Raw({name: raw.splits[name] for name in numbers}, raw.streaming, raw.identity)
    return OwnData(
        task, modalities, numbers, RawRows(used, columns, modalities), items, parted, digest.hexdigest(), raw.streaming,
        [*notes, *left_out, *resolved.notes, *unlabelled, *more], settings.max_broken, lacking,
        None if settings.key is None else own_names(used, opened.written, settings.key, settings.dir),
    )  # fmt: skip


def _labels_of(settings: DataSettings) -> list[str]:
    """The columns that hold labels."""
    return settings.label_columns or [settings.label]


def _resolved(raw: Raw, settings: DataSettings) -> classes.Classes:
    """The labels of all splits."""
    what = f"{settings.dir}: column {settings.label!r}"
    if settings.label_columns:
        every = {split: {name: _column(data, name) for name in settings.label_columns}
                 for split, data in raw.splits.items()}  # fmt: skip
        return several.resolve_columns(every, str(settings.dir))
    columns = _label_columns(raw, settings.label, settings.multilabel)
    if not settings.multilabel:
        refuse_several(columns, what)
    return several.resolve_lists(columns, what) if settings.multilabel else classes.resolve(columns, what)


def _column(data: Any, name: str) -> list[Any]:
    """A column's values; nothing else is read."""
    only = data.select_columns([name])
    return list(only[name]) if hasattr(only, "num_rows") else [row[name] for row in only]


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


def choose_columns(raw: Raw, settings: DataSettings, location: str) -> tuple[dict[str, str], dict[str, Modality]]:
    """Modality -> column, and modality -> kind, by the training split."""
    features = features_of(next(iter(raw.splits.values())), location)
    labels, key = _labels_of(settings), "data.label_columns" if settings.label_columns else "data.label"
    for name in labels:
        if name not in features:
            raise DataError(f"{location} has no column {name!r} for the classes ({key}); {nearest(name, features)}")
    usable = {name: kind for name, feature in features.items() if name not in labels and (kind := kind_of(feature))}
    columns = settings.columns
    if columns is None:
        columns = {name: name for name in usable if name not in RESERVED}
    for modality, column in columns.items():
        if modality in RESERVED or "@" in modality:
            raise DataError(f"data.columns.{modality}: choose another name for this modality")
        if column not in features:
            raise DataError(f"data.columns.{modality}: {location} has no column {column!r}; {nearest(column, usable)}")
        if column in labels:
            raise DataError(f"data.columns.{modality}: column {column!r} is the label; a student would only copy it")
        if column not in usable:
            raise DataError(f"data.columns.{modality}: column {column!r} is no picture, sound, text or array")
    return dict(columns), {modality: Modality(usable[column]) for modality, column in columns.items()}


def complete_splits(
    raw: Raw, wanted: Sequence[str], columns: Mapping[str, str], modalities: Mapping[str, Modality], location: str,
    lacking: bool = False,
) -> tuple[Raw, list[str]]:  # fmt: skip
    """The splits that have every column, and which ones are left out; with `lacking` a modality's column may be empty.

    Raises:
        DataError: a column holds one kind of values here and another there.
    """
    kept, notes = {}, []
    for split, data in raw.splits.items():
        features = features_of(data, location)
        needed = [] if lacking else wanted
        missing = [column for column in wanted
                   if column not in features or (column in needed and _all_missing(data, column))]  # fmt: skip
        if missing and split != next(iter(raw.splits)):
            notes.append(f"the {split} split has no column {missing[0]!r} and isn't used")
            continue
        for modality, column in columns.items():
            kind = kind_of(features[column])
            if lacking and _all_missing(data, column):
                continue  # no value has a type
            if kind != modalities[modality].kind:
                raise DataError(f"{location}: column {column!r} holds {modalities[modality].kind} in train and "
                                f"{kind or 'something else'} in {split}; make them of one kind")  # fmt: skip
        kept[split] = data
    return Raw(kept, raw.streaming, raw.identity), notes


def _all_missing(data: Any, column: str) -> bool:
    """Whether no row of a split in files has a value: readers fill up what a file lacks."""
    return hasattr(data, "num_rows") and data.num_rows > 0 and data.data.column(column).null_count == len(data.data)


def features_of(data: Any, location: str) -> Mapping[str, Any]:
    """A split's columns and their types.

    Raises:
        DataError: it has none.
    """
    features = data.features
    if features is None:  # streamed, and the repository doesn't say
        features = data._resolve_features().features
    if not features:
        raise DataError(f"{location} has no columns")
    return dict(features)


def _label_columns(raw: Raw, column: str, lists: bool = False) -> dict[str, classes.Column]:
    """The splits' labels; nothing else of them is read."""
    import datasets

    found: dict[str, classes.Column] = {}
    declared: tuple[str, ...] = ()
    for split, data in raw.splits.items():
        values = _column(data, column)
        feature = (data.features or {}).get(column)
        if lists:
            feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        names: tuple[str, ...] = ()
        if isinstance(feature, datasets.ClassLabel):
            names = tuple(feature.names)
            declared = declared or names
        elif declared and isinstance(feature, datasets.Value) and "int" in str(feature.dtype):
            names = declared  # numbers of the training split's classes
        found[split] = classes.Column(values, names)
    return found


def _labelled_splits(numbers: Mapping[str, np.ndarray], learn: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """The splits that have labels, and which ones are left out; with `learn`, training rows without one stay."""
    kept, notes = dict(numbers), []
    for split in ("validation", "test"):
        if split in kept and not known_rows(kept[split]).any():
            notes.append(f"the {split} split has no labels and isn't used")
            del kept[split]
    stay = [name for name in kept if learn and name in ("train", "all")]
    dropped = sum(int((~known_rows(values)).sum()) for name, values in kept.items() if name not in stay)
    if dropped:
        hint = "" if learn else "; data.unlabelled=learn distils on those of the training part"
        notes.append(f"{dropped:,} instances have no label and are left out{hint}")
    return kept, notes


def known_rows(numbers: np.ndarray) -> np.ndarray:
    """[N] whether an instance has a label, or of several classes at once [N, C] one of them is known."""
    found: np.ndarray = numbers >= 0
    return found if found.ndim == 1 else np.any(found, axis=1)


def _items(numbers: Mapping[str, np.ndarray], learn: bool) -> tuple[list[Item], bool, list[str]]:
    """Labelled instances with their parts, and with `learn` the training part's others. A test split that is missing
    is held out of the training part; a missing validation split is cut where the data are read."""
    parted = len(numbers) > 1
    items, notes = [], []
    for split, values in numbers.items():
        rows = np.flatnonzero(known_rows(values))
        held: set[int] = set()
        if parted and split == "train" and "test" not in numbers:
            order = np.random.default_rng(_SEED).permutation(rows)
            held = set(order[: len(rows) // _HELD_OUT].tolist())
            notes.append(f"no test split: {len(held):,} of the {len(rows):,} training instances are held out for it")
        part = SPLITS.index(split) if parted else -1
        items += [
            Item(
                f"{split}/{row}",
                (split, int(row)),
                int(values[row]) if values.ndim == 1 else None,
                SPLITS.index("test") if row in held else part,
            )
            for row in (np.arange(len(values)) if learn and split in ("train", "all") else rows).tolist()
        ]
    return items, parted, notes
