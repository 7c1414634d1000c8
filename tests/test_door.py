"""One door for all data: inputs as people have them, each through every way in where it can occur.

Each gives the right value or one line of our own, the same from `check` and from training.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from mstdistill.data.instance import read
from mstdistill.data.prepared.store import write
from mstdistill.data.sources.own import OwnData
from mstdistill.errors import MstdistillError

from . import doors
from .doors import Refused, agree, arrow, classes_of, jsonl, looked, opened, parquet, table


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))


N = 30
NAN = float("nan")
WRITERS = {"arrow": arrow, "jsonl": jsonl, "csv": table, "parquet": parquet}


def over(values: Sequence[Any], count: int = N) -> list[Any]:
    return [values[i % len(values)] for i in range(count)]


# Labels in a column: the first values of the training split (repeated), the classes they are, or the words of the line;
# the files that can hold them.
LABELS: list[tuple[str, list[Any], list[str | None] | str, str]] = [
    ("words", ["cat", "dog"], ["cat", "dog"], "arrow jsonl csv parquet"),
    ("numbers", [0, 1, 2], ["0", "1", "2"], "arrow jsonl csv parquet"),
    ("numbers from one", [1, 2], ["1", "2"], "arrow jsonl csv parquet"),
    ("numbers with gaps", [10, 700, -5], ["10", "700", "-5"], "arrow jsonl csv parquet"),
    ("numbers with a point", [0.0, 1.0], ["0", "1"], "arrow jsonl csv parquet"),
    ("fractions", [0.0, 0.5], "holds 0.5: classes are whole numbers or words", "arrow jsonl csv parquet"),
    ("endless", [0.0, float("inf")], "holds inf", "arrow parquet"),
    ("truth", [True, False], ["True", "False"], "arrow jsonl csv parquet"),
    ("minus one", [0, 1, -1], ["0", "1", None], "arrow jsonl csv parquet"),
    ("nothing", ["cat", "dog", None], ["cat", "dog", None], "arrow jsonl csv parquet"),
    ("empty words", ["cat", "dog", "", "  "], ["cat", "dog", None, None], "arrow jsonl parquet"),
    ("a table's NA", ["cat", "dog", "NA", "n/a"], ["cat", "dog", None, None], "arrow jsonl csv parquet"),
    ("the word None", ["cat", "dog", "None"], ["cat", "dog", None], "arrow jsonl csv parquet"),
    ("words that are no gap", ["no", "none", "na"], ["no", "none", "na"], "arrow jsonl csv parquet"),
    ("numbers and gaps", [0, 1, None], ["0", "1", None], "arrow jsonl csv parquet"),
    ("not a number", [0.0, 1.0, NAN], ["0", "1", None], "arrow csv parquet"),
    ("words of digits", ["01", "1"], ["01", "1"], "arrow jsonl parquet"),
    ("unicode", ["größe", "🙂"], ["größe", "🙂"], "arrow jsonl csv parquet"),
    ("markup", ["[/INST]", "[red]"], ["[/INST]", "[red]"], "arrow jsonl csv parquet"),
    ("dates", [dt.date(2020, 1, 2), dt.date(2021, 3, 4)], ["2020-01-02", "2021-03-04"], "arrow parquet"),
    ("times", [dt.datetime(2020, 1, 2, 3), dt.datetime(2020, 1, 2, 4)],
     ["2020-01-02T03:00:00", "2020-01-02T04:00:00"], "arrow parquet"),
    ("spans", [dt.timedelta(1), dt.timedelta(2)], "classes are whole numbers or words", "arrow parquet"),
    ("one-hot", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], ["0", "1", "2"], "arrow jsonl parquet"),
    ("one-hot with a point", [[1.0, 0.0], [0.0, 1.0]], ["0", "1"], "arrow jsonl parquet"),
    ("no class hot", [[1, 0], [0, 1], [0, 0]], ["0", "1", None], "arrow jsonl parquet"),
    ("one-hot of two lengths", [[1, 0], [0, 1], [0, 0, 1]], "entries where other rows have", "arrow jsonl parquet"),
    ("lists of one", [["cat"], ["dog"], []], ["cat", "dog", None], "arrow jsonl parquet"),
    ("shares", [[0.2, 0.8], [0.6, 0.4]], "one-hot", "arrow jsonl parquet"),
    ("structures", [{"name": "cat"}, {"name": "dog"}], "a structure", "arrow jsonl parquet"),
    ("bytes", [b"cat", b"dog"], "classes are whole numbers or words", "arrow parquet"),
    ("one class", ["cat"], "1 different values", "arrow jsonl csv parquet"),
    ("none at all", [None], "0 different values", "arrow jsonl parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "right", "files"), [case[1:] for case in LABELS], ids=[case[0] for case in LABELS])
def test_labels(values: list[Any], right: list[str | None] | str, files: str, tmp_path: Path) -> None:
    rows = {"x": [[float(i), 1.0] for i in range(N)], "label": over(values)}
    for kind in files.split():
        flat = rows if kind != "csv" else {"x": rows["x"], "label": ["" if v is None else v for v in rows["label"]]}
        folder = WRITERS[kind](tmp_path / kind, {"train": flat})
        data = opened(folder)
        if isinstance(right, str):
            assert isinstance(data, Refused), kind
            assert right in data.line, kind
            assert "column 'label'" in data.line
            assert looked(folder) == data
        else:
            assert isinstance(data, OwnData), (kind, data)
            assert classes_of(data) == {"all": over(right)}, kind
            if kind != "csv":  # a csv has no lists of numbers
                splits = agree(folder, "x")
                assert isinstance(splits, dict)
                x, label = doors.everything(splits, "x")
                kept = [data.task.class_names[number] for number in label]
                assert [over(right)[int(i)] for i in x[:, 0]] == kept


def features(kind: Any) -> Any:
    return datasets.Features({"x": datasets.List(datasets.Value("float32")), "label": kind})


def named(*names: str) -> Any:
    return features(datasets.ClassLabel(names=list(names)))


WORD, WHOLE = features(datasets.Value("string")), features(datasets.Value("int64"))
# Labels that differ from split to split: of train and test, their features, what test's are, and a note or the line.
SPLITS: list[tuple[str, list[Any], list[Any], Any, Any, list[str] | None, str]] = [
    ("names in another order", [0, 1], [0, 0, 1], named("cat", "dog"), named("dog", "cat"), ["dog", "dog", "cat"], ""),
    ("names and words", [0, 1], ["dog"], named("cat", "dog"), WORD, ["dog"], ""),
    ("names and numbers", [0, 1], [1], named("cat", "dog"), WHOLE, ["dog"], ""),
    ("names and a number too many", [0, 1], [2], named("cat", "dog"), WHOLE, None, "test/0 holds 2"),
    ("a class only tested", ["a", "b"], ["c", "a"], WORD, WORD, ["c", "a"], ""),
    ("words and numbers", ["a", "b"], [1], WORD, WHOLE, None, "whole numbers (test/0) and words (train/0)"),
    ("kept back", [0, 1], [-1], WHOLE, WHOLE, None, "the test split has no labels and isn't used"),
    ("empty", ["a", "b"], [""], WORD, WORD, None, "the test split has no labels and isn't used"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test", "train_kind", "test_kind", "right", "words"), [case[1:] for case in SPLITS],
                         ids=[case[0] for case in SPLITS])  # fmt: skip
def test_labels_over_splits(train: list[Any], test: list[Any], train_kind: Any, test_kind: Any,
                            right: list[str] | None, words: str, tmp_path: Path) -> None:  # fmt: skip
    x = [[float(i)] for i in range(N)]
    rows = {"train": {"x": x, "label": over(train)}, "test": {"x": x, "label": over(test)}}
    folder = arrow(tmp_path / "d", rows, {"train": train_kind, "test": test_kind})
    data = opened(folder)
    if isinstance(data, Refused):
        assert right is None
        assert words in data.line
    elif right is None:
        assert words in data.notes
        assert "test" not in data.numbers
    else:
        assert classes_of(data)["test"] == over(right)
    assert isinstance(agree(folder, "x"), Refused) == isinstance(data, Refused)


@pytest.mark.parametrize("kind", ["arrow", "jsonl"])
@pytest.mark.parametrize("lost", ["label", "more"])
def test_a_test_split_that_lacks_a_column_is_left_out(kind: str, lost: str, tmp_path: Path) -> None:
    rows = {"x": [[float(i)] for i in range(N)], "more": list(range(N)), "label": over([0, 1])}
    test = {name: values for name, values in rows.items() if name != lost}
    folder = WRITERS[kind](tmp_path / "d", {"train": rows, "test": test})
    data = opened(folder)
    assert isinstance(data, OwnData)
    assert "test" not in data.numbers
    assert any("the test split has no" in note for note in data.notes)
    assert looked(folder) is True
    assert isinstance(agree(folder, "x"), dict)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


GOOD = png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
DEEP = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
PICTURE, ARRAY = datasets.Image(), datasets.List(datasets.Value("float32"))
# A row's value among good ones: the feature, the others' values, this one; what it is, or why it is left out.
VALUES: list[tuple[str, Any, Any, Any, Any]] = [
    ("finite", ARRAY, [1.0, 2.0], [3.5, -4.0], np.float32([3.5, -4.0])),
    ("missing", ARRAY, [1.0, 2.0], None, "is missing"),
    ("a missing number", ARRAY, [1.0, 2.0], [1.0, None], "missing numbers"),
    ("not a number", ARRAY, [1.0, 2.0], [1.0, NAN], "holds NaN or Inf"),
    ("endless", ARRAY, [1.0, 2.0], [1.0, float("-inf")], "holds NaN or Inf"),
    ("shorter", ARRAY, [1.0, 2.0], [1.0], "has shape [1]"),
    ("longer", ARRAY, [1.0, 2.0], [1.0, 2.0, 3.0], "has shape [3]"),
    ("empty", ARRAY, [1.0, 2.0], [], "holds no numbers"),
    ("too large", datasets.List(datasets.Value("float64")), [1.0, 2.0], [1e300, 0.0], "beyond float32"),
    ("whole", datasets.List(datasets.Value("int64")), [1, 2], [2**40, -(2**40)], np.int64([2**40, -(2**40)])),
    ("ragged", datasets.List(ARRAY), [[1.0], [2.0]], [[1.0], [2.0, 3.0]], "different lengths"),
    ("another depth", datasets.List(ARRAY), [[1.0, 2.0]], [[1.0], [2.0]], "has shape [2, 1]"),
    ("flags", datasets.List(datasets.Value("bool")), [True, False], [False, True], np.uint8([0, 1])),
    ("half", datasets.List(datasets.Value("float16")), [1.0, 2.0], [0.5, 6e4], np.float32([0.5, 6e4])),
    ("a number alone", datasets.Value("float32"), 1.0, -2.5, np.float32([-2.5])),
    ("a picture", PICTURE, GOOD, png(np.full((4, 4, 3), 7, np.uint8)), np.full((3, 4, 4), 7 / 255, np.float32)),
    ("of 16 bits", PICTURE, png(DEEP), png(np.full((4, 4), 65535, np.uint16)), np.ones((1, 4, 4), np.float32)),
    ("cut", PICTURE, GOOD, GOOD[:40], "not a readable image"),
    ("no picture", PICTURE, GOOD, b"GIF89a", "not a readable image"),
    ("no bytes", PICTURE, GOOD, b"", "is empty"),
    ("missing picture", PICTURE, GOOD, None, "is missing"),
    ("of another size", PICTURE, GOOD, png(np.zeros((5, 4, 3), np.uint8)), "make them all of one size"),
]  # fmt: skip


def row_of(feature: Any, value: Any) -> Any:
    return {"bytes": value, "path": None} if isinstance(feature, datasets.Image) and value is not None else value


@pytest.mark.parametrize("value", [case[1:] for case in VALUES], ids=[case[0] for case in VALUES])
def test_values_in_files(value: tuple[Any, Any, Any, Any], tmp_path: Path) -> None:
    feature, usual, odd, right = value
    rows = {"x": [row_of(feature, odd if i == 20 else usual) for i in range(N)], "i": list(range(N)),
            "label": over([0, 1])}  # fmt: skip
    kinds = datasets.Features({"x": feature, "i": datasets.Value("int64"), "label": datasets.Value("int64")})
    folder = arrow(tmp_path / "d", {"train": rows}, {"train": kinds})
    data = opened(folder, max_broken=0.1)
    assert isinstance(data, OwnData)
    splits = doors.prepared(data, "x", "i")
    assert isinstance(splits, dict), splits
    assert looked(folder, max_broken=0.1) is True
    inputs = [split.fetch(np.arange(len(split)), ["x", "i"])[0] for split in splits.values()]
    found = {int(i): x.numpy() for part in inputs for x, i in zip(part["x"], part["i"], strict=True)}
    if isinstance(right, str):
        assert sorted(found) == [i for i in range(N) if i != 20]
        lists = list((tmp_path / "home").rglob("broken.json"))
        assert len(lists) == 1
        text = lists[0].read_text()
        assert right in text
        assert "all/20" in text
        strict = opened(folder, max_broken=0.0)
        assert isinstance(strict, OwnData)
        assert isinstance(doors.prepared(strict, "x", "i"), dict)  # made already, and said
    else:
        assert np.allclose(found[20], right, rtol=0, atol=1e-7)
        assert found[20].shape == right.shape


@pytest.mark.parametrize("broken", [2, 12, N])
def test_more_broken_rows_than_are_allowed_is_one_line(broken: int, tmp_path: Path) -> None:
    """Also where every row that a file of the prepared data would hold is broken."""
    content = [row_of(PICTURE, b"no picture" if i < broken else GOOD) for i in range(N)]
    rows = {"x": content, "label": over([0, 1])}
    kinds = datasets.Features({"x": PICTURE, "label": datasets.Value("int64")})
    folder = arrow(tmp_path / "d", {"train": rows}, {"train": kinds})
    found = agree(folder, "x")
    assert isinstance(found, Refused)
    assert "not a readable image" in found.line


TEXT, SOUND = datasets.Value("string"), datasets.Audio()
SAMPLES = {"array": datasets.List(datasets.Value("float32")), "sampling_rate": datasets.Value("int64")}
TONE = np.sin(np.arange(400) / 5).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 8000, samples)
    return file.getvalue()


# Sounds and texts, which a processor takes on: the feature, the others' values, this one; what it is, or the line.
HEARD: list[tuple[str, Any, Any, Any, Any]] = [
    ("a text", TEXT, "a", "  größe 🙂\n", "  größe 🙂\n"),
    ("no text", TEXT, "a", None, None),
    ("a wav", SOUND, wav(TONE), wav((TONE * 16384).astype(np.int16)), (TONE * 16384).astype(np.int16) / 32768),
    ("two channels", SOUND, wav(TONE), wav(np.stack([TONE, 0 * TONE], 1)), TONE / 2),
    ("a cut wav", SOUND, wav(TONE), wav(TONE)[:60], None),
    ("no sound", SOUND, wav(TONE), b"RIFF", None),
    ("no bytes", SOUND, wav(TONE), b"", None),
    ("missing sound", SOUND, wav(TONE), None, None),
    ("samples", SAMPLES, {"array": TONE, "sampling_rate": 8000}, {"array": TONE / 2, "sampling_rate": 8000}, TONE / 2),
    ("rate 0", SAMPLES, {"array": TONE, "sampling_rate": 8000}, {"array": TONE, "sampling_rate": 0}, None),
    ("no rate", SAMPLES, {"array": TONE, "sampling_rate": 8000}, {"array": TONE, "sampling_rate": None}, None),
    ("no samples", SAMPLES, {"array": TONE, "sampling_rate": 8000}, {"array": [], "sampling_rate": 8000}, None),
    ("NaN samples", SAMPLES, {"array": TONE, "sampling_rate": 8000}, {"array": [NAN], "sampling_rate": 8000}, None),
]  # fmt: skip


@pytest.mark.parametrize("value", [case[1:] for case in HEARD], ids=[case[0] for case in HEARD])
def test_sounds_and_texts_in_files(value: tuple[Any, Any, Any, Any], tmp_path: Path) -> None:
    feature, usual, odd, right = value
    encode = (lambda v: v if v is None else {"bytes": v, "path": None}) if feature is SOUND else (lambda v: v)
    rows = {"x": [encode(odd if i == 20 else usual) for i in range(N)], "label": over([0, 1])}
    kinds = datasets.Features({"x": feature, "label": datasets.Value("int64")})
    folder = arrow(tmp_path / "d", {"train": rows}, {"train": kinds})
    data = opened(folder)
    assert isinstance(data, OwnData)
    assert read(data, "all", 19, ["x"])[1] == 1
    if right is None:
        with pytest.raises(MstdistillError) as error:
            read(data, "all", 20, ["x"])
        assert "all/20" in doors.one_line(error.value).line
        assert looked(folder) is False
        assert looked(folder, max_broken=0.1) is True
        return
    found, label = read(data, "all", 20, ["x"])
    assert label == 0
    assert looked(folder) is True
    if isinstance(right, str):
        assert found["x"] == right
    else:
        samples, rate = found["x"]
        assert rate == 8000
        assert np.allclose(samples, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("x", "label", "words"), [
    (np.float32([[1], [NAN]] * 15), over([0, 1]), "NaN"),
    (np.float32([[1], [np.inf]] * 15), over([0, 1]), "Inf"),
    (np.float32([[1]] * N), over([0, 99]), "label 99"),
    (np.float32([[1]] * N), over([0, -2]), "label -2"),
])  # fmt: skip
def test_prepared_folders_are_judged_by_the_same_rules(x: np.ndarray, label: list[int], words: str,
                                                       tmp_path: Path) -> None:  # fmt: skip
    from mstdistill import check
    from mstdistill.data.feeding.loader import Loader
    from mstdistill.data.sources.folder import PreparedSource

    columns = {"x": x, "label": np.int64(label)}
    write(tmp_path / "d", {"train": columns, "validation": columns, "test": columns},
          {"task": "hers", "classes": ["a", "b"]})  # fmt: skip
    report = check(tmp_path / "d")
    assert not report.usable
    assert words in " ".join(report.wrong)
    source = PreparedSource(tmp_path / "d")
    labels = source.labels
    loader = Loader(source.parts["train"], ["x"], 8, num_classes=labels.count, ignore_index=labels.ignore)
    with pytest.raises(MstdistillError) as error:
        list(loader.epoch(0))
    assert words in doors.one_line(error.value).line


@pytest.mark.parametrize(("name", "content", "words"), [
    ("train.csv", b"x,label\n1,a\n2,b\n3,c,9,9\n", "train.csv: ParserError: Error tokenizing data"),
    ("train.csv", b"t,label\n" + b"caf\xe9,1\nb,0\n" * 20, "save it as UTF-8"),
    ("train.csv", b"", "train.csv"),
    ("train.jsonl", b'{"x": 1, "label": 0}\n{"x": \n', "train.jsonl"),
    ("train.json", b"[1, 2", "train.json"),
    ("train.parquet", b"PAR1 and nothing more", "train.parquet"),
    ("train.arrow", b"ARROW1", "train.arrow"),
    ("train.txt", b"a\nb\n", "no column 'label'"),
    ("train.xlsx", b"PK", "can't be read"),
    ("train.zip", b"PK", "can't be read"),
])  # fmt: skip
def test_files_that_cannot_be_read_say_why(name: str, content: bytes, words: str, tmp_path: Path,
                                           capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(content)
    for location in (tmp_path / "d", tmp_path / "d" / name):
        found = opened(location)
        assert isinstance(found, Refused), name
        if location.is_dir():
            assert words in found.line
        assert looked(location) == found
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["set[1]", "a*b", "who?", "{x}", "ä ö", "[[", "100%"])
def test_any_letters_in_a_path(name: str, tmp_path: Path) -> None:
    rows = {"x": [[float(i)] for i in range(N)], "label": over(["a", "b"])}
    folder = parquet(tmp_path / name / "below", {"train": rows})
    for location in (folder, folder / "train.parquet"):
        data = opened(location)
        assert isinstance(data, OwnData), data
        assert isinstance(agree(location, "x"), dict)
