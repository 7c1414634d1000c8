"""The door of data sets in Python: items as people write them give the right tensors, or one line of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from mstdistill.data.sources.python import DatasetSplit
from mstdistill.errors import DataError, MstdistillError

from . import doors
from .doors import Refused

NAN = float("nan")


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, **columns: Any) -> None:
        self.columns = columns
        self.count = max(len(values) for values in columns.values())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[Any, Any]:
        return {name: values[i % len(values)] for name, values in self.columns.items()}


WIDE = np.arange(12, dtype=np.float64).reshape(4, 3)
# Values of items in Python, and what a network gets of the last of them; or the line.
ITEMS: list[tuple[str, list[Any], Any]] = [
    ("double", [WIDE[0], WIDE[1]], np.float32(WIDE[1])),
    ("half", [np.float16([1, 2]), np.float16([0.5, 3])], np.float32([0.5, 3])),
    ("backwards", [WIDE[0][::-1], WIDE[1][::-1]], np.float32(WIDE[1][::-1])),
    ("a column", [WIDE[:, 0], WIDE[:, 1]], np.float32(WIDE[:, 1])),
    ("big-endian", [WIDE[0].astype(">f8"), WIDE[1].astype(">f8")], np.float32(WIDE[1])),
    ("read-only", [np.broadcast_to(np.float32(1), (3,)), np.broadcast_to(np.float32(2), (3,))], np.float32([2, 2, 2])),
    ("whole of 16 bits without sign", [np.uint16([1]), np.uint16([65535])], np.int32([65535])),
    ("whole of 64 bits without sign", [np.uint64([1]), np.uint64([2**63])], "more than a 64-bit whole number"),
    ("truth", [np.array([True, False]), np.array([False, True])], np.float32([0, 1])),
    ("lists", [[1.0, 2.0], [3.0, 4.0]], np.float32([3, 4])),
    ("whole, then not", [[1, 2], [3.5, 4.0]], np.float32([3.5, 4])),
    ("a number", [1.5, 2.5], np.float32(2.5)),
    ("bfloat16", [torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1.5, dtype=torch.bfloat16)],
     np.float32([1.5, 1.5])),
    ("with gradient", [torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)], np.float32([1, 1])),
    ("sparse", [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()], np.eye(2, dtype=np.float32)),
    ("transposed", [torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0).reshape(2, 3).T],
     np.arange(6, dtype=np.float32).reshape(2, 3).T),
    ("a parameter", [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))], np.float32([1, 1])),
    ("complex", [np.complex64([1j]), np.complex64([1j])], "numbers"),
    ("complex tensors", [torch.tensor([1j]), torch.tensor([1j])], "real numbers are wanted"),
    ("nothing", [None, None], "is missing"),
    ("words", ["a", "b"], "a tensor or an array of numbers is wanted"),
    ("a picture", [Image.new("L", (2, 2)), Image.new("L", (2, 2))], "a tensor or an array of numbers is wanted"),
    ("beyond float32", [np.float64([1.0]), np.float64([1e300])], "too large for torch.float32"),
    ("of two shapes", [torch.ones(2), torch.ones(3)], "has shape [3] where the first has [2]"),
    ("lists of two lengths", [[[1.0], [2.0]], [[1.0], [2.0, 3.0]]], "data[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "right"), [case[1:] for case in ITEMS], ids=[case[0] for case in ITEMS])
def test_items_in_python(values: list[Any], right: Any) -> None:
    data = Items(x=values, label=[0, 1], path=["a.png", None], **{"more of any kind": [{}, ()]})
    found = doors.refused(lambda: DatasetSplit(data, wanted=("x",)).fetch(np.array([0, 1]), ["x"]))
    if isinstance(right, str):
        assert isinstance(found, Refused)
        assert right in found.line
        return
    assert not isinstance(found, Refused), found
    x, label = found
    assert not x["x"].requires_grad
    assert x["x"][1].numpy().dtype == right.dtype
    assert np.array_equal(x["x"][1].numpy(), right)
    assert label.tolist() == [0, 1]
    tuples = [(value, i % 2) for i, value in enumerate(values)]
    named_, _ = DatasetSplit(tuples, names=("x", "label")).fetch(np.array([1]), ["x"])
    assert torch.equal(named_["x"][0], x["x"][1])


# Labels of items in Python, the classes they are, or the line.
CLASSES: list[tuple[str, list[Any], list[int] | str]] = [
    ("numbers", [0, 2], [0, 2]),
    ("of NumPy", [np.int8(0), np.uint64(2)], [0, 2]),
    ("tensors", [torch.tensor(0), torch.tensor(2)], [0, 2]),
    ("of shape [1]", [torch.tensor([0]), np.array([2])], [0, 2]),
    ("with a point", [0.0, torch.tensor(2.0)], [0, 2]),
    ("fractions", [0, 1.5], "data[1]: label 1.5 is no class"),
    ("no number", [0, NAN], "is no class"),
    ("truth", [False, True], [0, 1]),
    ("one-hot", [torch.eye(3)[0], np.eye(3)[2]], [0, 2]),
    ("several hot", [torch.eye(3)[0], torch.tensor([1, 0, 1])], "2 classes (multi-label)"),
    ("shares", [torch.tensor([0.5, 0.5]), torch.eye(2)[0]], "is no class"),
    ("names", ["cat", "dog"], [0, 1]),
    ("another name", ["cat", "cow"], "'cow' is a word that no class has"),
    ("nothing", [0, None], "data[1] has no 'label'"),
    ("a mapping", [0, {"id": 1}], "data[1]"),
]


@pytest.mark.parametrize(("labels", "right"), [case[1:] for case in CLASSES], ids=[case[0] for case in CLASSES])
def test_labels_of_items_in_python(labels: list[Any], right: list[int] | str) -> None:
    data = Items(x=[torch.ones(2)], label=labels)
    found = doors.refused(lambda: DatasetSplit(data, class_names=("cat", "dog", "cow!")).fetch(np.arange(2), ["x"]))
    if isinstance(right, str):
        assert isinstance(found, Refused)
        assert right in found.line
        return
    assert not isinstance(found, Refused), found
    assert found[1].tolist() == right
    assert found[1].dtype == torch.int64


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([{"x": torch.ones(2), "label": 0}])


class Failing(Items):
    def __getitem__(self, i: int) -> dict[Any, Any]:
        if i == 1:
            raise OSError("disk\non fire")
        return super().__getitem__(i)


@pytest.mark.parametrize(("data", "words"), [
    (Stream(), "can only be read from front to back"),
    (iter([{"x": 1, "label": 0}]), "can only be read from front to back"),
    (DataLoader([{"x": 1, "label": 0}]), "give its .dataset"),
    ([], "is empty"),
    (Items(x=[1.0], label=[0])[0], "data[0]"),
    ([(1.0, 0)], "names=(...)"),
    ([1.0, 2.0], "must be a mapping"),
    (Items(x=[1.0]), "has no 'label'"),
    (Failing(x=[1.0, 2.0], label=[0, 1]), "data[1] can't be read (OSError: disk"),
    (7, "a data set with a length and positions is wanted"),
])  # fmt: skip
def test_what_is_no_data_set_is_one_line(data: Any, words: str) -> None:
    with pytest.raises(MstdistillError) as error:
        DatasetSplit(data)
    assert words in doors.one_line(error.value).line


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "int64", "uint8"])
def test_arrays_in_one_piece_are_the_arrays_one_by_one(name: str) -> None:
    random = np.random.default_rng(0)
    rows = [{"a": (random.standard_normal((3, 4)) * 50).astype(name), "label": i} for i in range(6)]
    split = DatasetSplit(rows)
    together, _ = split.fetch(np.arange(6), ["a"])
    one_by_one = torch.stack([split._value("a", i, row) for i, row in enumerate(rows)])
    assert together["a"].dtype == one_by_one.dtype
    assert torch.equal(together["a"], one_by_one)


@pytest.mark.parametrize(("odd", "words"), [
    (np.full((3, 4), 1e300), "too large"), (np.zeros((3, 5)), "shape"), (np.array(["x"] * 4), "numbers"),
])  # fmt: skip
def test_one_odd_array_among_a_batch_is_named(odd: np.ndarray, words: str) -> None:
    rows: list[dict[str, object]] = [{"a": np.zeros((3, 4)), "label": i} for i in range(40)]
    split = DatasetSplit(rows)  # looks at some rows alone; row 1 isn't among them
    rows[1]["a"] = odd
    with pytest.raises(DataError, match=rf"data\[1\].*{words}"):
        split.fetch(np.arange(6), ["a"])


def test_fractions_among_whole_numbers_are_never_cut() -> None:
    rows = [{"a": np.arange(3), "label": i} for i in range(40)]
    split = DatasetSplit(rows)
    for row in rows[:6]:
        row["a"] = np.array([0.5, 1, 2])
    with pytest.raises(DataError, match="make them of one type"):
        split.fetch(np.arange(6), ["a"])
