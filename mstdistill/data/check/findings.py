"""What is counted while a data set is looked over, and what is made of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Instances of a split that are compared with one another; more would take memory without end.
SAMPLED = 20_000
_QUIET = 1e-4


class ColumnFindings:
    """A modality's counts."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.count = self.missing = self.empty = self.constant = self.nan = self.inf = 0
        self.broken: list[str] = []
        self.broken_count = 0
        self.dtypes: Counter[str] = Counter()
        self.ranks: set[int] = set()
        self.smallest: tuple[int, ...] = ()
        self.largest: tuple[int, ...] = ()
        self.low, self.high = np.inf, -np.inf
        self.rates: Counter[int] = Counter()
        self.seen: dict[str, dict[bytes, int]] = {}

    def add(self, split: str, value: Any) -> None:
        """Count an instance: a picture, (samples, rate), a text, an array, None, or the error that it gave."""
        self.count += 1
        if value is None:
            self.missing += 1
        elif isinstance(value, Exception):
            self.broken_count += 1
            if len(self.broken) < 5:
                self.broken.append(str(value))
        elif isinstance(value, str):
            self._text(split, value)
        else:
            if isinstance(value, tuple):
                value, rate = value
                self.rates[int(rate)] += 1
            self.dtypes[value.mode if hasattr(value, "getbands") else str(np.asarray(value).dtype)] += 1
            self._array(split, np.asarray(value))

    def _text(self, split: str, text: str) -> None:
        self.dtypes["text"] += 1
        self.empty += not text.strip()
        self._shape((len(text),))
        self._remember(split, text.encode())

    def _array(self, split: str, array: np.ndarray) -> None:
        self._shape(array.shape)
        if array.size == 0:
            self.empty += 1
            return
        finite = array
        if np.issubdtype(array.dtype, np.floating):
            good = np.isfinite(array)
            if not good.all():
                self.nan += int(np.isnan(array).any())
                self.inf += int(np.isinf(array).any())
                finite = array[good]
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
            self.low, self.high = min(self.low, low), max(self.high, high)
            quiet = _QUIET if self.kind == "audio" else 0.0
            self.constant += array.size > 1 and high - low <= quiet
        self._remember(split, np.ascontiguousarray(array).tobytes())

    def _shape(self, shape: tuple[int, ...]) -> None:
        self.ranks.add(len(shape))
        if len(self.ranks) > 1:
            return
        self.smallest = tuple(map(min, self.smallest or shape, shape))
        self.largest = tuple(map(max, self.largest or shape, shape))

    def _remember(self, split: str, content: bytes) -> None:
        seen = self.seen.setdefault(split, {})
        digest = hashlib.blake2b(content, digest_size=12).digest()
        if digest in seen or len(seen) < SAMPLED:
            seen[digest] = seen.get(digest, 0) + 1

    @property
    def varies(self) -> bool:
        """Whether shapes differ."""
        return len(self.ranks) > 1 or self.smallest != self.largest

    @property
    def duplicates(self) -> int:
        """Instances that repeat another of their split."""
        return sum(count - 1 for seen in self.seen.values() for count in seen.values())

    def shared(self) -> dict[str, int]:
        """Instances of a split that the training split has as well."""
        train = self.seen.get("train", {})
        return {
            split: count for split, seen in self.seen.items()
            if split != "train" and (count := sum(digest in train for digest in seen))
        }  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Everything counted."""
        shape: Any = "numbers of dimensions differ" if len(self.ranks) > 1 else list(self.largest)
        found = {
            "kind": self.kind,
            "instances": self.count,
            "shape": shape,
            "smallest_shape": None if not self.varies or len(self.ranks) > 1 else list(self.smallest),
            "types": dict(self.dtypes),
            "range": [self.low, self.high] if self.low <= self.high else None,
            "present": (self.count - self.missing) / max(self.count, 1),
            "missing": self.missing, "empty": self.empty, "unreadable": self.broken_count,
            "unreadable_examples": self.broken, "with_nan": self.nan, "with_inf": self.inf,
            "constant": self.constant, "duplicates": self.duplicates, "also_in_train": self.shared(),
        }  # fmt: skip
        return found | ({"sample_rates": {str(k): n for k, n in self.rates.items()}} if self.rates else {})


class Rows:
    """How many labelled rows there are, and how many of them can't be used.

    Attributes:
        limit: the share that may be unusable and is left out then.
        partial: how many lack a modality and may.
    """

    def __init__(self) -> None:
        self.seen = self.unusable = self.partial = 0
        self.limit = 0.0
        self.examples: list[str] = []

    def count(self, troubles: Sequence[str], complete: bool = True) -> None:
        """One more row, with what is wrong with it."""
        self.seen += 1
        self.partial += not complete
        self.unusable += bool(troubles)
        self.examples += troubles[: max(0, 5 - len(self.examples))]

    @property
    def too_many(self) -> bool:
        """Whether more are unusable than may be."""
        return self.unusable > self.limit * self.seen

    def figures(self) -> dict[str, Any]:
        """Everything counted."""
        return {"labelled": self.seen, "unusable": self.unusable, "limit": self.limit, "examples": self.examples,
                "complete": self.seen - self.partial}  # fmt: skip


class LabelFindings:
    """The classes' counts: instances, or pixels where labels are maps.

    Attributes:
        containing: class -> instances that hold it.
    """

    def __init__(self, names: Sequence[str], ignore: Sequence[int], most: int, several: bool = False) -> None:
        self.names, self.ignore, self.most = tuple(names), set(ignore), most
        self.several = several
        self.counts: dict[str, Counter[Any]] = {}
        self.containing: Counter[Any] = Counter()
        self.missing = 0
        self.wrong: list[str] = []
        self.dense = False

    def add(self, split: str, label: Any) -> None:
        """Count an instance's label: a number, or a map of numbers."""
        counts = self.counts.setdefault(split, Counter())
        if label is None:
            self.missing += 1
            return
        array = np.asarray(label)
        if self.several:
            self._add_several(counts, array)
            return
        self.dense = self.dense or array.ndim > 0
        if array.dtype.kind not in "iub":
            self._note(f"{str(label)[:40]} is no class: whole numbers or words are wanted")
            return
        values, many = np.unique(array, return_counts=True)
        for value, count in zip(values.tolist(), many.tolist(), strict=True):
            if value in self.ignore:
                continue
            if value == -1 and not array.ndim:
                self.missing += 1
            elif value < 0 or (self.names and value >= len(self.names)):
                self._note(f"label {value} is out of range: there are {len(self.names) or 'no such'} classes")
            elif len(counts) < self.most or value in counts:
                counts[value] += count
                self.containing[value] += 1

    def _add_several(self, counts: Counter[Any], label: np.ndarray) -> None:
        if label.ndim != 1 or not np.isin(label, (0, 1, -1)).all():
            self._note("a label holds something else than 0, 1 and -1 (not known) a class")
            return
        self.missing += not (label >= 0).any()
        for number in np.flatnonzero(label == 1).tolist():
            counts[number] += 1
            self.containing[number] += 1

    def _note(self, text: str) -> None:
        if text not in self.wrong and len(self.wrong) < 5:
            self.wrong.append(text)

    def title(self, value: Any) -> str:
        """A class's name."""
        return self.names[value] if self.names and isinstance(value, int) and value < len(self.names) else str(value)

    def totals(self) -> Counter[Any]:
        """Instances (pixels, for maps) by class."""
        return sum(self.counts.values(), Counter())

    def imbalance(self) -> float | None:
        """The commonest class over the rarest."""
        totals = self.totals()
        return max(totals.values()) / min(totals.values()) if totals else None

    def figures(self) -> dict[str, Any]:
        """Everything counted."""
        totals = self.totals()
        return {
            "classes": {self.title(value): totals[value] for value in sorted(totals)},
            "by_split": {split: {self.title(v): n for v, n in counts.items()} for split, counts in self.counts.items()},
            "imbalance": self.imbalance(), "missing": self.missing, "maps": self.dense,
            "unit": "pixels" if self.dense else "instances",
            "containing": {self.title(v): self.containing[v] for v in sorted(self.containing)},
        }  # fmt: skip


def judge(
    counts: Mapping[str, int], columns: Sequence[ColumnFindings], labels: LabelFindings, rows: Rows
) -> tuple[list[str], list[str]]:
    """What is wrong and what is odd, in plain words."""
    wrong: list[str] = []
    odd: list[str] = []
    total = sum(counts.values())
    if total < 5:
        odd.append(f"{total} instances are few to train, validate and test")
    if not columns:
        wrong.append("no column holds pictures, sounds, texts or arrays")
    elif len(columns) == 1:
        odd.append(f"there is one modality, {columns[0].name}: teachers should see another one than the student")
    if rows.unusable:
        some = any(column.missing for column in columns)
        learn = "learn from what is there (data.missing=allow, --allow-missing), " if some else ""
        share = f"{rows.unusable:,} of {rows.seen:,} instances can't be used"
        if rows.too_many:
            wrong.append(
                f"{share}, more than {rows.limit:g} of them (the first: {rows.examples[0]}); mend them, leave their "
                f"column out (data.columns, --column), {learn}or allow more (data.max_broken, --max-broken)"
            )
        else:
            odd.append(f"{share} and are left out (the first: {rows.examples[0]})")
    if rows.partial:
        odd.append(
            f"{rows.partial:,} of {rows.seen:,} instances lack a modality: those who can see them learn from them"
        )
    for column in columns:
        if rows.partial and column.missing == column.count:
            wrong.append(f"{column.name}: no instance has it; leave it out (data.columns, --column)")
        _judge_column(column, wrong if rows.too_many else odd, odd)
    _judge_labels(labels, total, wrong, odd)
    return wrong, odd


def _judge_column(column: ColumnFindings, faults: list[str], odd: list[str]) -> None:
    name, count = column.name, max(column.count, 1)
    if column.broken_count + column.missing:
        text = f"{name}: {column.missing:,} missing and {column.broken_count:,} unreadable of {count:,}"
        faults.append(text + (f" (the first: {column.broken[0]})" if column.broken else ""))
    if column.nan or column.inf:
        faults.append(f"{name}: {column.nan:,} instances hold NaN and {column.inf:,} Inf; mend or drop them")
    if column.varies and column.kind == "array":
        sizes = f"shapes vary from {list(column.smallest)} to {list(column.largest)}"
        sizes = sizes if len(column.ranks) == 1 else f"numbers of dimensions differ, {sorted(column.ranks)}"
        faults.append(f"{name}: {sizes}; pad or crop them to one")
    elif column.varies and column.kind == "image":
        odd.append(f"{name}: sizes vary; a model with a processor brings them to one, a registered backbone doesn't")
    if column.empty:
        odd.append(f"{name}: {column.empty:,} are empty")
    if column.constant:
        what = {"audio": "silent", "image": "of one colour"}.get(column.kind, "constant")
        odd.append(f"{name}: {column.constant:,} are {what}")
    if column.duplicates and column.kind != "text":
        odd.append(f"{name}: {column.duplicates:,} repeat another one of their split")
    for split, shared in column.shared().items():
        if column.kind != "text":
            odd.append(f"{name}: {shared:,} of {split} are in train as well: its figures will flatter")
    if column.kind == "array" and column.high - column.low > 1000 and any(t.startswith("float") for t in column.dtypes):
        odd.append(f"{name}: values from {column.low:.3g} to {column.high:.3g}; networks learn better near [-1, 1]")


def _judge_labels(labels: LabelFindings, total: int, wrong: list[str], odd: list[str]) -> None:
    wrong += labels.wrong
    totals = labels.totals()
    if len(totals) < 2 and not labels.wrong:
        (odd if totals else wrong).append(f"the label column holds {len(totals)} class(es); at least two are wanted")
        return
    if len(totals) > 20 and len(totals) > total / 2 and not (labels.dense or labels.several):
        odd.append(f"the label column holds {len(totals):,} different values in {total:,} instances: is it an id?")
    if labels.missing:
        odd.append(f"{labels.missing:,} instances have no label; they are left out")
    present = {labels.title(value) for value in totals}
    absent = [name for name in labels.names if name not in present]
    if absent:
        odd.append(f"{len(absent)} of {len(labels.names)} classes have no instance: {', '.join(absent[:5])}")
    for split, counts in labels.counts.items():
        lost = [labels.title(value) for value in totals if value not in counts]
        if lost and counts and len(labels.counts) > 1:
            odd.append(f"{split} lacks {len(lost)} of {len(totals)} classes: {', '.join(lost[:5])}")
    rare = [labels.title(value) for value, count in labels.containing.items() if count < 5]
    if rare:
        odd.append(f"{len(rare)} classes are in fewer than 5 instances: {', '.join(rare[:5])}")
    if (labels.imbalance() or 1) > 20:
        odd.append(f"the commonest class is {labels.imbalance():.0f} times as frequent as the rarest: look at F1 and "
                   "average accuracy, not at accuracy")  # fmt: skip
