"""Made-up rows, labels, arrays and files: nothing but our own errors, no value changed, `check` and training agree.

`--examples N` sets how many of each are tried.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.io import wavfile

from mstdistill.data.instance import read, value
from mstdistill.data.source import Modality
from mstdistill.data.sources import labels
from mstdistill.data.sources.own import OwnData
from mstdistill.data.sources.python import DatasetSplit

from . import doors
from .doors import Refused

FUZZ = settings(settings.get_profile("fuzz"))

# Labels

WORDS = st.one_of(st.text(max_size=4), st.sampled_from(["NA", "None", "nan", "cat", "dog", "0", "1", " ", "[red]"]))
NUMBERS = st.one_of(st.integers(-2, 4), st.integers(), st.floats(), st.sampled_from([0.0, 1.0, -1.0, 2.5]))
DATES = st.dates(dt.date(1990, 1, 1), dt.date(2030, 1, 1))
HOT = st.lists(st.sampled_from([0, 1, 0.0, 1.0]), max_size=4)
SINGLE = st.one_of(WORDS, NUMBERS, st.booleans(), DATES, HOT, st.none(), st.binary(max_size=3),
                   st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))  # fmt: skip
KINDS = (WORDS, st.integers(-1, 5), st.sampled_from([0.0, 1.0, 2.0]), NUMBERS, st.booleans(), DATES, HOT, SINGLE)
COLUMNS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.fixed_dictionaries(
        {split: st.lists(st.one_of(kind, st.none()), min_size=1, max_size=8) for split in ("train", "test")}
    )
)


def meant(value: Any) -> str | None:
    """The class that a person means, as a text; None: none."""
    if value is None or (isinstance(value, str) and value.strip() in labels.ABSENT):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        kept = [v for v in value if not (isinstance(v, float) and math.isnan(v))]
        if len(kept) < 2:
            return meant(kept[0]) if kept else None
        return str(kept.index(1)) if 1 in kept else None
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, (int, float)):
        return None if value == -1 else str(int(value))
    return value.isoformat()


@FUZZ
@given(COLUMNS)
def test_labels_mean_what_they_say(columns: dict[str, list[Any]]) -> None:
    given_ = {split: labels.Column(values) for split, values in columns.items()}
    found = doors.refused(lambda: labels.resolve(given_, "x: column 'label'"))
    if isinstance(found, Refused):
        assert "column 'label'" in found.line
        return
    for split, values in columns.items():
        got = [found.names[i] if i >= 0 else None for i in found.numbers[split].tolist()]
        assert got == [meant(value) for value in values]
    assert len(set(found.names)) == len(found.names)


# Arrays in Python

DTYPES = st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)),
                   hnp.boolean_dtypes())  # fmt: skip
ARRAYS = st.tuples(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)).flatmap(
    lambda kind: st.lists(hnp.arrays(kind[0], kind[1]), min_size=1, max_size=4)
)


def twisted(array: np.ndarray, way: int) -> Any:
    """The same numbers in other memory, or in another type that holds them."""
    if way == 1:
        return np.flip(np.flip(array).copy()) if array.ndim else array
    if way == 2:
        return np.asfortranarray(array) if array.ndim else array
    if way == 3:
        return array.tolist() if array.ndim else array.item()
    if way == 4 and array.dtype.isnative and array.dtype.name not in ("uint16", "uint32", "uint64"):
        return torch.from_numpy(array.copy()).requires_grad_(array.dtype.kind == "f")
    return array


@FUZZ
@given(ARRAYS, st.integers(0, 4), st.sampled_from([torch.float32, torch.float64]))
def test_arrays_in_python_keep_their_numbers(arrays: list[np.ndarray], way: int, dtype: torch.dtype) -> None:
    items = [{"x": twisted(array, way), "label": i % 2} for i, array in enumerate(arrays)]
    index = np.arange(len(items))
    found = doors.refused(lambda: DatasetSplit(items, wanted=("x",), dtype=dtype).fetch(index, ["x"]))
    if isinstance(found, Refused):
        return
    values = found[0]["x"]
    for got, array in zip(values, arrays, strict=True):
        assert got.shape == array.shape
        if array.dtype.kind == "f":
            assert got.dtype == dtype
            want = array.astype(np.float64).astype(got.numpy().dtype)
            assert np.array_equal(got.numpy(), want, equal_nan=True)
        else:
            assert [int(v) for v in got.reshape(-1)] == [int(v) for v in array.reshape(-1)]


# Rows in files

CELLS = {
    "float": st.lists(st.one_of(st.floats(width=32), st.none()), max_size=3),
    "fixed": st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=2),
    "nested": st.lists(st.lists(st.integers(-9, 9), max_size=2), max_size=2),
    "text": st.one_of(st.text(max_size=5), st.none()),
    "whole": st.one_of(st.integers(-(2**63), 2**63 - 1), st.none()),
    "struct": st.one_of(st.fixed_dictionaries({"a": st.integers(0, 3)}), st.none()),
}
ROWS = st.sampled_from(list(CELLS)).flatmap(
    lambda kind: st.lists(st.tuples(CELLS[kind], st.sampled_from(["a", "b", None, ""])), min_size=1, max_size=12)
)


@FUZZ
@given(ROWS, st.sampled_from(["arrow", "jsonl"]))
def test_rows_in_files(rows: list[tuple[Any, Any]], kind: str) -> None:
    columns = {"x": [x for x, _ in rows], "label": [label for _, label in rows]}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MSTDISTILL_HOME"] = f"{folder}/home"
        try:
            location = {"arrow": doors.arrow, "jsonl": doors.jsonl}[kind](Path(folder) / "d", {"train": columns})
        except (OverflowError, TypeError, ValueError):  # more than Arrow holds
            return
        data = doors.opened(location, columns={"x": "x"}, max_broken=0.5)
        said = doors.looked(location, columns={"x": "x"}, max_broken=0.5)
        if isinstance(data, Refused):
            assert said == data
            return
        kept = unchanged(data, rows)
        if data.modalities["x"].kind == "array":
            found = doors.prepared(data, "x")
            assert said is not isinstance(found, Refused), (said, found)
            if not isinstance(found, Refused):
                values, _ = doors.everything(found, "x")
                assert len(values) <= len(kept)
                assert sorted(map(str, values.tolist()))


def unchanged(data: OwnData, rows: list[tuple[Any, Any]]) -> list[int]:
    """Rows that are read; each has the value and the class that were written."""
    kept = []
    for split, count in data.splits.items():
        assert count == len(rows)
        for position, (x, label) in enumerate(rows):
            found = doors.refused(partial(read, data, split, position, ["x"]))
            if isinstance(found, Refused):
                assert f"{split}/{position}" in found.line
                continue
            values, number = found
            assert data.task.class_names[number] == label
            if isinstance(x, str):
                assert values["x"] == x
            else:
                want = np.asarray(x)
                assert values["x"].astype(np.float64).ravel().tolist() == want.astype(np.float64).ravel().tolist()
            kept.append(position)
    return kept


# Files


def _image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


def _table() -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["x", "text", "label"])
    writer.writerows([i, f"row {i}, so", "ab"[i % 2]] for i in range(12))
    return file.getvalue().encode()


def _lines() -> bytes:
    return b"".join(json.dumps({"x": [i, 0.5], "label": i % 2}).encode() + b"\n" for i in range(12))


def _parquet() -> bytes:
    import pandas

    file = io.BytesIO()
    pandas.DataFrame({"x": [[float(i), 1.0] for i in range(12)], "label": [i % 2 for i in range(12)]}).to_parquet(file)
    return file.getvalue()


FILES = {
    "csv": _table(),
    "jsonl": _lines(),
    "parquet": _parquet(),
    "json": b"[" + _lines().replace(b"\n", b",")[:-1] + b"]",
}
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6), st.integers(0, 8)), max_size=3)


def edited(content: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for place, new, lost in edits:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + lost :]
    return content


@FUZZ
@given(st.sampled_from(list(FILES)), EDITS)
def test_files_of_any_bytes(kind: str, edits: list[tuple[int, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MSTDISTILL_HOME"] = f"{folder}/home"
        location = Path(folder) / "d"
        location.mkdir()
        (location / f"train.{kind}").write_bytes(edited(FILES[kind], edits))
        data = doors.opened(location, columns={"x": "x"})
        said = doors.looked(location, columns={"x": "x"})
        if isinstance(data, Refused):
            assert said == data
        elif data.modalities["x"].kind == "array":
            found = doors.prepared(data, "x")
            assert said is not isinstance(found, Refused), (said, found)
        if not edits:
            assert said is True


PIXELS = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
SAMPLES = np.sin(np.arange(64) / 3).astype(np.float32)


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def _sound(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 8000, samples)
    return file.getvalue()


MEDIA = {
    **{("image", kind): _picture(kind) for kind in ("PNG", "BMP", "TIFF", "WEBP", "PPM")},
    ("audio", "float"): _sound(SAMPLES),
    ("audio", "whole"): _sound((SAMPLES * 32767).round().astype(np.int16)),
}


@FUZZ
@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(sorted(MEDIA)), EDITS)
def test_pictures_and_sounds_of_any_bytes(kind: tuple[str, str], edits: list[tuple[int, bytes, int]]) -> None:
    content = edited(MEDIA[kind], edits)
    raw = {"bytes": content, "path": None}
    found = doors.refused(lambda: value(Modality(kind[0]), raw, "x of train/3"))
    if isinstance(found, Refused):
        assert found.line.startswith("x of train/3")
        assert content != MEDIA[kind]
    elif kind[0] == "audio":
        assert found[0].dtype == np.float32
        assert found[0].size
        if content == MEDIA[kind]:
            assert np.abs(found[0] - SAMPLES).max() < 1e-4
    else:
        assert found.mode in ("L", "RGB")
        if content == MEDIA[kind]:
            assert np.array_equal(np.asarray(found), PIXELS)


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", "")
