"""Data sets in Python: anything with a length and positions whose items name modalities and a label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ...errors import DataError, nearest
from ..decode.value import array_of
from ..instance import attempted, infinite
from ..source import UNLABELLED, Labels, Modality, Row

# Positions looked at before anything is trained: shapes, types, labels, and whether an item is the same twice.
_PROBES = 16


class DatasetSplit:
    """A data set in Python as a `Split` and a `Source`.

    Items are mappings of modality names, and `label`, to tensors, arrays or numbers, or tuples whose places have
    `names`. Floats become `dtype`, whole numbers stay; keys that nobody reads don't matter. A label is a class (a whole
    number in any form, [1]-shaped ones and one-hot vectors too, or a word of `class_names`) or a map [H, W] of classes.

    Args:
        names: of the places of a tuple; None: items are mappings.
        wanted: the modalities that are read; None: all that hold numbers.
        name: of the data set, for messages: train[3].
        class_names: words that labels may be.
        dtype: of floating-point values.
        several: whether an instance may have several classes at once; labels are then arrays [C] of 0 and 1, and -1 or
            NaN where that isn't known.
        unlabelled: whether labels may be missing: None, NaN or -1, all read as -1.
        missing: whether items may lack a modality: None, or no such key; it is read as zeros. Each item is read once to
            know which do.

    Attributes:
        notes: what was read in another way than it was given.
        present: modality -> [N] bool, of those that some items lack.

    Raises:
        DataError: no such data set, or an item that can't be used; the message names it.
    """

    def __init__(
        self,
        dataset: Any,
        label: str = "label",
        *,
        names: Sequence[str] | None = None,
        wanted: Sequence[str] | None = None,
        name: str = "data",
        class_names: Sequence[str] = (),
        ignore: int | None = None,
        dtype: torch.dtype = torch.float32,
        unlabelled: bool = False,
        missing: bool = False,
        several: bool = False,
    ) -> None:
        _check_kind(dataset, name)
        self.dataset, self.label, self.name, self.dtype = dataset, label, name, dtype
        self.names = tuple(names) if names is not None else None
        self.class_names, self.ignore, self.unlabelled = tuple(class_names), ignore, unlabelled
        self.lacking = missing
        self.several, self._width = several, len(class_names)
        self.numbers = {word: i for i, word in enumerate(self.class_names)}
        self.notes: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, torch.dtype] = {}
        self._maps = False
        first = self.item(0)
        if label not in first:
            raise DataError(f"{name}[0] has no {label!r}; found {sorted(map(str, first))}")
        if missing:  # the first item says nothing of what it lacks
            first = self._known(first)
        known = [key for key in first if key != label]
        self.wanted = list(known if wanted is None else dict.fromkeys(wanted))
        for key in self.wanted:
            if key not in first and not missing:
                raise DataError(f"{name}[0] has no modality {key!r}; {nearest(key, map(str, known))}")
        if wanted is None:
            self.wanted = [key for key in self.wanted if _is_numeric(first[key])]
        probe = np.unique(np.linspace(0, len(dataset) - 1, _PROBES).astype(int))
        self.present = self._look_for_missing() if missing else {}
        self._learn(np.union1d(probe, [int(there.argmax()) for there in self.present.values()]).astype(int))
        digests = [self._digest(probe), self._digest(probe)]
        self.deterministic = digests[0] == digests[1]
        self.fingerprint = digests[0]

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def modalities(self) -> dict[str, Modality]:
        """What items hold."""
        return {key: Modality("array", self._shapes[key]) for key in self.wanted}

    @property
    def labels(self) -> Labels:
        """What they are labelled with; how many classes there are a network says."""
        if self.several:
            return Labels("several", self.class_names, self._width or None)
        return Labels("maps" if self._maps else "classes", self.class_names, None, self.ignore)

    @property
    def splits(self) -> dict[str, int]:
        """The one split that a data set is."""
        return {self.name: len(self)}

    def called(self, split: str, position: int) -> str:
        """See `Source`."""
        return self.called_at(position)

    def called_at(self, position: int) -> str:
        """See `split.called`."""
        return f"{self.name}[{position}]"

    def row(self, split: str, position: int) -> Row:
        """See `Source`."""
        item = self.item(position)
        label = self._label(position, item)
        values = {key: self._given(key, position, item) for key in self.wanted}
        return Row(values, label.numpy() if isinstance(label, Tensor) else label)

    def _given(self, key: str, i: int, item: Mapping[str, Any]) -> np.ndarray | DataError | None:
        if self.lacking and item.get(key) is None:
            return None
        try:
            found: np.ndarray = _tensor(item.get(key), self.dtype, f"{key} of {self.name}[{i}]").numpy()
            return found
        except DataError as error:
            return error

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Modalities [B, ...] and labels of these items; see `Split`."""
        for key in modalities:
            if key not in self._shapes:
                raise DataError(f"{self.name} has no modality {key!r}; {nearest(key, self._shapes)}")
        rows = [(int(i), self.item(int(i))) for i in index]
        inputs = {key: self._column(key, rows) for key in modalities}
        labels = [self._label(i, item) for i, item in rows]
        maps = [label if isinstance(label, Tensor) else torch.tensor(label) for label in labels] if self._maps else []
        return inputs, _stacked(maps, f"{self.name}: label maps") if self._maps else torch.tensor(labels)

    def _column(self, key: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Tensor:
        """A modality of these items [B, ...]: arrays of one kind in one piece, anything else one by one."""
        given: list[Any] = [item.get(key) for _, item in rows]
        kind = given[0].dtype if type(given[0]) is np.ndarray else None
        if kind in _PLAIN and all(
            type(one) is np.ndarray and one.dtype == kind and one.shape == self._shapes[key] for one in given
        ):
            wanted = self._types[key]
            together = torch.from_numpy(np.stack(given))
            if together.dtype == wanted:
                return together
            cast = together.to(wanted) if together.is_floating_point() and wanted.is_floating_point else None
            # where one became infinite, or is, one by one finds its row
            if cast is not None and bool(torch.isfinite(cast.sum())):
                return cast
        return torch.stack([self._value(key, i, item) for i, item in rows])

    def item(self, i: int) -> Mapping[str, Any]:
        """An item, places of tuples under their names."""
        item = attempted(f"{self.name}[{i}]", lambda: self.dataset[i])
        if self.names is not None and isinstance(item, (tuple, list)):
            if len(item) != len(self.names):
                raise DataError(f"{self.name}[{i}] has {len(item)} parts, names has {len(self.names)}")
            return dict(zip(self.names, item, strict=True))
        if not isinstance(item, Mapping):
            tuples = "; tuples need their places' names: names=(...)" if isinstance(item, (tuple, list)) else ""
            raise DataError(f"{self.name}[{i}]: each item must be a mapping of modalities and {self.label!r}, not a "
                            f"{type(item).__name__}{tuples}")  # fmt: skip
        return item

    def _known(self, first: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first items' keys, each with a value where one of them has any."""
        found = dict(first)
        for i in range(min(len(self), _PROBES)):
            for key, value in self.item(i).items():
                if found.get(key) is None:
                    found[key] = value
        return found

    def _look_for_missing(self) -> dict[str, np.ndarray]:
        there = {key: np.zeros(len(self), dtype=bool) for key in self.wanted}
        for i in range(len(self)):
            item = self.item(i)
            for key, values in there.items():
                values[i] = item.get(key) is not None
        for key, values in there.items():
            if not values.any():
                raise DataError(f"{self.name}: no item has modality {key!r}; leave it out, or name another")
        return {key: values for key, values in there.items() if not values.all()}

    def _lacks(self, key: str, i: int) -> bool:
        return key in self.present and not self.present[key][i]

    def _learn(self, probe: np.ndarray) -> None:
        """Shapes and types from some items: a later one of another shape is named; floats among whole numbers are
        floats everywhere."""
        for number, i in enumerate(probe):
            item = self.item(int(i))
            label = self._label(int(i), item)
            for key in self.wanted:
                if self._lacks(key, int(i)):
                    continue
                found = self._there(item.get(key), f"{self.name}[{i}]: {key!r}")
                if not found.numel():
                    raise DataError(f"{self.name}[{i}]: {key!r} holds no numbers")
                if key not in self._shapes:
                    self._shapes[key], self._types[key] = tuple(found.shape), found.dtype
                self._types[key] = torch.promote_types(self._types[key], found.dtype)
            if not number:
                self._maps = isinstance(label, Tensor)

    def _value(self, key: str, i: int, item: Mapping[str, Any]) -> Tensor:
        given = item.get(key)
        if self._lacks(key, i):
            return torch.zeros(self._shapes[key], dtype=self._types[key])
        if type(given) is Tensor and _ready(given, self._types[key], self._shapes[key]):
            return given
        where = f"{self.name}[{i}]: {key!r}"
        found = self._there(given, where)
        if tuple(found.shape) != self._shapes[key]:
            raise DataError(f"{where} has shape {list(found.shape)} where the first has {list(self._shapes[key])}: "
                            "modality lengths differ; pad or crop them to one")  # fmt: skip
        wanted = self._types[key]
        if found.dtype != wanted:
            if found.is_floating_point() and not wanted.is_floating_point:
                raise DataError(f"{where} holds {found.dtype}, the first items {wanted}; make them of one type")
            found = found.to(wanted)
        return found

    def _there(self, given: Any, where: str) -> Tensor:
        if given is None:
            raise DataError(f"{where} is missing; to learn from such items too: data.missing=allow")
        return _tensor(given, self.dtype, where)

    def _label(self, i: int, item: Mapping[str, Any]) -> int | Tensor:
        """A class, or a map [H, W] int64."""
        given = item.get(self.label)
        if self.several:
            return self._classes(given, f"{self.name}[{i}]")
        if type(given) is int:
            return given
        where = f"{self.name}[{i}]"
        if isinstance(given, str):
            if given not in self.numbers:
                hint = nearest(given, self.numbers) if self.numbers else "name the classes: class_names=(...)"
                raise DataError(f"{where}: label {given!r} is a word that no class has; {hint}")
            return self.numbers[given]
        if self.unlabelled and (given is None or (isinstance(given, float) and given != given)):
            return UNLABELLED
        if given is None:
            raise DataError(f"{where} has no {self.label!r}; leave such items out, or learn from them too: "
                            "data.unlabelled=learn")  # fmt: skip
        found = _tensor(given, torch.float64, f"{where}: label")
        return self._class(found, where)

    def _classes(self, given: Any, where: str) -> Tensor:
        """[C] int64: 0, 1, or -1 where that isn't known."""
        if given is None and self._width and self.unlabelled:
            return torch.full((self._width,), UNLABELLED)
        found = _tensor(given, torch.float64, f"{where}: label")
        if found.dim() != 1 or len(found) < 1 or self._width not in (0, len(found)):
            width = self._width or "number of classes"
            raise DataError(f"{where}: label has shape {list(found.shape)}; data.multilabel wants 0s and 1s [{width}]")
        self._width = len(found)
        found = found.to(torch.float64).nan_to_num(nan=UNLABELLED)
        if bool(((found != 0) & (found != 1) & (found != UNLABELLED)).any()):
            wrong = found[(found != 0) & (found != 1) & (found != UNLABELLED)][0]
            raise DataError(f"{where}: label holds {wrong:g}; 0, 1 or -1 (not known) is wanted for each class")
        if not self.unlabelled and bool((found == UNLABELLED).all()):
            raise DataError(f"{where}: nothing is known of its label; leave such items out, or learn from them too: "
                            "data.unlabelled=learn")  # fmt: skip
        return found.to(torch.int64)

    def _class(self, found: Tensor, where: str) -> int | Tensor:
        """A class, or a map [H, W] int64, of whatever numbers stand for it."""
        if found.is_floating_point():
            if infinite(found.numpy()) or bool((found != found.trunc()).any()):
                text = f"{found.item():g}" if found.numel() == 1 else "numbers with a fraction"
                raise DataError(f"{where}: label {text} is no class: whole numbers are wanted")
            self._note("labels that are whole numbers with a point are read as classes")
        found = found.to(torch.int64)
        while found.dim() in (1, 3) and found.shape[0] == 1:
            found = found[0]
        if found.dim() == 1:
            ones = int((found == 1).sum())
            if ones != 1 or int((found != 0).sum()) != 1:
                several = f"{ones} classes (multi-label); one is wanted" if ones > 1 else "a vector that isn't one-hot"
                raise DataError(f"{where}: label is {several}, or data.multilabel=true")
            self._note("one-hot labels are read as classes")
            return int(found.argmax())
        if found.dim() not in (0, 2):
            raise DataError(
                f"{where}: label has shape {list(found.shape)}; a class or a map [H, W] of classes is wanted"
            )
        return found if found.dim() else int(found)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _digest(self, probe: np.ndarray) -> str:
        digest = hashlib.sha256(str(len(self.dataset)).encode())
        for key, there in self.present.items():
            digest.update(key.encode() + np.packbits(there).tobytes())
        for i in probe:
            item = self.item(int(i))
            values = {key: self._value(key, int(i), item) for key in self.wanted}
            label = torch.as_tensor(self._label(int(i), item))
            for name, tensor in sorted({**values, self.label: label}.items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()


def _check_kind(dataset: Any, name: str) -> None:
    """Raises DataError for what has no length and positions."""
    if isinstance(dataset, DataLoader):
        raise DataError(f"{name} is a DataLoader, which has made its batches already; give its .dataset")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is {_article(dataset)}, which can only be read from front to back; a data set with a length and "
            "positions is wanted: list(...) of it, or datasets.Dataset.from_generator where that is too large"
        )
    if attempted(name, lambda: len(dataset)) == 0:
        raise DataError(f"{name}: the data set is empty")


def _article(thing: Any) -> str:
    kind = "IterableDataset" if isinstance(thing, IterableDataset) else type(thing).__name__
    return f"an {kind}" if kind[0] in "AEIOU" else f"a {kind}"


def _ready(given: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be taken as it is."""
    plain = given.device.type == "cpu" and given.layout == torch.strided and not given.requires_grad
    return plain and given.dtype == dtype and given.shape == shape


def _stacked(parts: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{what} have shapes {' and '.join(str(list(shape)) for shape in sorted(shapes)[:2])}; "
                        "crop or pad them to one")  # fmt: skip
    return torch.stack(parts)


def _is_numeric(value: Any) -> bool:
    try:
        _tensor(value, torch.float32, "")
    except DataError:
        return False
    return True


# Arrays that become tensors as they are.
_PLAIN = {np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")}

_UNSIGNED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint16": lambda x: x.astype(np.int32), "uint32": lambda x: x.astype(np.int64),
}  # fmt: skip


def _tensor(value: Any, dtype: torch.dtype, where: str) -> Tensor:
    """Numbers in any form as a tensor on the CPU without gradient, floats in `dtype`.

    Raises:
        DataError: no numbers, or numbers that no tensor holds unchanged.
    """
    if value is None:
        raise DataError(f"{where} is missing")
    if isinstance(value, Tensor):
        found = value.detach()
        found = (found.to_dense() if found.layout != torch.strided else found).to("cpu")
    else:
        array = attempted(where, lambda: np.asarray(value) if hasattr(value, "dtype") else array_of(value, where))
        if array.dtype.name in ("bfloat16",) or array.dtype == np.longdouble:
            array = array.astype(np.float32 if array.dtype.itemsize < 8 else np.float64)
        if array.dtype.kind not in "biuf" or hasattr(value, "getbands"):
            raise DataError(f"{where} is {_article(value)}; a tensor or an array of numbers is wanted")
        if array.dtype.name == "uint64" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{where} holds {int(array.max())}, more than a 64-bit whole number with a sign")
        array = array.astype(np.int64) if array.dtype.name == "uint64" else array
        array = _UNSIGNED.get(array.dtype.name, np.ascontiguousarray)(array)
        # a zero-dimensional array may lose its shape on the way; a contiguous one may yet have a negative stride
        needs_copy = not array.flags.writeable or min(array.strides, default=0) < 0
        array = array.astype(array.dtype.newbyteorder("="), copy=needs_copy, order="C")
        found = torch.from_numpy(array).reshape(np.shape(value))
    if found.is_complex() or found.is_quantized:
        raise DataError(f"{where} holds {found.dtype}; real numbers are wanted")
    if found.is_floating_point() and found.dtype != dtype:
        cast = found.to(dtype)
        if dtype != torch.float64 and bool((~torch.isfinite(cast) & torch.isfinite(found)).any()):
            raise DataError(f"{where} holds numbers too large for {dtype}")
        found = cast
    return found.to(dtype) if found.dtype == torch.bool else found
