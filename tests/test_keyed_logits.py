"""Teachers that are only logits, by key: any order, any table, the same as by order; or refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mstdistill import Teacher, config, distill
from mstdistill.data.given_logits import view_of
from mstdistill.data.keyed_logits import KeyedLogits, LogitsFile, with_logits
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.plan import Column, Item, Plan
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.split import Subset, identities
from mstdistill.data.task import Task
from mstdistill.engine.progress import Screen
from mstdistill.errors import DataError
from mstdistill.pipeline import train

from . import toy
from .conftest import Command, make_split, refused

C = 3
TASK = Task("toy", "toy", {}, C, class_names=("ant", "bee", "cow"))
SIZES = {"train": 12, "validation": 5, "test": 5}
NAMES = {split: [f"{split[:2]}-{i}.png" for i in range(count)] for split, count in SIZES.items()}
LOGITS = {
    split: torch.randn(count, C, generator=torch.Generator().manual_seed(count)) for split, count in SIZES.items()
}


def rows(splits: Sequence[str] = tuple(SIZES)) -> tuple[list[str], np.ndarray]:
    """Keys and logits of these splits, shuffled, with rows of nobody among them."""
    keys = [*(key for split in splits for key in NAMES[split]), "nobody", "nobody else"]
    logits = np.concatenate([*(LOGITS[split].numpy() for split in splits), np.full((2, C), np.nan, np.float32)])
    order = np.random.default_rng(0).permutation(len(keys))
    return [keys[i] for i in order], logits[order]


def npz(path: Path, keys: Any, logits: Any = None, **arrays: Any) -> None:
    np.savez(path, keys=keys, **({} if logits is None else {"logits": logits}), **arrays)


def wide(keys: Sequence[Any], logits: np.ndarray) -> dict[str, Any]:
    """A column a class, in another order than the classes'."""
    return {
        "cow": logits[:, 2],
        "key": list(keys),
        "ant": logits[:, 0],
        "remark": ["x"] * len(keys),
        "bee": logits[:, 1],
    }


def csv(path: Path, keys: Any, logits: Any) -> None:
    import pandas as pd

    pd.DataFrame(wide(keys, logits)).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


def parquet(path: Path, keys: Any, logits: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), C)
    pq.write_table(pa.table({"key": list(keys), "logits": lists}), path, row_group_size=7)


def jsonl(path: Path, keys: Any, logits: Any) -> None:
    path.write_text("".join(json.dumps({"key": k, "logits": row.astype(float).tolist()}, allow_nan=True) + "\n"
                            for k, row in zip(keys, logits, strict=True)))  # fmt: skip


def arrow(path: Path, keys: Any, logits: Any) -> None:
    import pyarrow as pa

    table = pa.table({name: pa.array(values) for name, values in wide(keys, logits).items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "npz": npz, "csv": csv, "tsv": csv, "parquet": parquet, "jsonl": jsonl, "arrow": arrow,
}  # fmt: skip


def splits() -> dict[str, Any]:
    return {split: make_split(count, seed=count) for split, count in SIZES.items()}


def keyed(path: Path, key: str = "key", names: Mapping[str, Sequence[str | None]] = NAMES) -> KeyedLogits:
    found = KeyedLogits(LogitsFile("gpt", str(path), key), splits(), names, TASK)
    for split in found.splits:
        found.check(split, splits()[split], C)
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_any_order_gives_the_same_as_rows_in_order(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"some.{kind}", *rows())
    found = keyed(tmp_path / f"some.{kind}")
    assert found.splits == tuple(SIZES)
    for split, logits in LOGITS.items():
        index = np.random.default_rng(1).permutation(len(logits))
        assert torch.equal(found.rows(split, index, C), logits[index])
        assert found.rows(split, index, C).dtype == torch.float32


def test_an_npz_is_mapped_and_a_compressed_one_is_read(tmp_path: Path) -> None:
    keys, logits = rows()
    npz(tmp_path / "some.npz", keys, np.asfortranarray(logits.astype(">f8")))
    np.savez_compressed(tmp_path / "packed.npz", keys=keys, logits=logits.astype(np.float64))
    found, packed = keyed(tmp_path / "some.npz"), keyed(tmp_path / "packed.npz")
    assert isinstance(found._table.values.array, np.memmap)  # type: ignore[attr-defined]
    index = np.arange(SIZES["train"])
    assert torch.equal(found.rows("train", index, C), LOGITS["train"].double())
    assert torch.equal(packed.rows("train", index, C), LOGITS["train"].double())


def test_the_largest_classes_alone_are_found_by_key_too(tmp_path: Path) -> None:
    keys, logits = rows()
    best = torch.from_numpy(logits).nan_to_num().log_softmax(1).topk(2, dim=1)
    npz(tmp_path / "few.npz", keys, values=best.values.numpy(), indices=best.indices.numpy().astype(np.int16))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"key": keys, "values": best.values.tolist(), "indices": best.indices.tolist()}),
                   tmp_path / "few.parquet")  # fmt: skip
    whole = LOGITS["test"].softmax(1)
    for name in ("few.npz", "few.parquet"):
        shares = keyed(tmp_path / name).rows("test", np.arange(5), C).float().softmax(1)
        torch.testing.assert_close(shares, whole, rtol=1e-4, atol=1e-5)  # of three classes, two say it all


def test_keys_are_compared_by_their_text_and_columns_end_in_classes(tmp_path: Path) -> None:
    numbers = {split: [str(100 * i + len(split)) for i in range(count)] for split, count in SIZES.items()}
    keys = np.array([int(key) for split in SIZES for key in numbers[split]])
    logits = torch.cat(list(LOGITS.values())).numpy()
    npz(tmp_path / "whole.npz", keys, logits)
    np.savez(tmp_path / "named.npz", id=keys.astype(np.str_), logits=logits)
    import pandas as pd

    pd.DataFrame({"c2": logits[:, 2], "c0": logits[:, 0], "c1": logits[:, 1], "id": keys}).to_csv(
        tmp_path / "numbers.csv"
    )
    for name, key in (("whole.npz", "key"), ("named.npz", "id")):
        assert torch.equal(keyed(tmp_path / name, key, numbers).rows("test", np.arange(5), C), LOGITS["test"])
    with pytest.raises(DataError, match=r"has 4 columns of numbers beside the key"):  # pandas' index is one more
        keyed(tmp_path / "numbers.csv", "id", numbers)
    pd.read_csv(tmp_path / "numbers.csv", index_col=0).to_csv(tmp_path / "numbers.csv", index=False)
    assert torch.equal(keyed(tmp_path / "numbers.csv", "id", numbers).rows("test", np.arange(5), C), LOGITS["test"])


def test_splits_that_the_file_does_not_have_are_not_given(tmp_path: Path) -> None:
    npz(tmp_path / "train.npz", *rows(["train"]))
    found = keyed(tmp_path / "train.npz")
    assert found.splits == ("train",)
    assert "train 12, validation not given, test not given; 2 rows of others" in found.told
    beside = with_logits(splits(), [LogitsFile("gpt", str(tmp_path / "train.npz"))], TASK, "", lambda line: None,
                         lambda split: NAMES[{12: "train", 5: "test"}[len(split)]])  # fmt: skip
    assert beside["validation"].lacks == {view_of("gpt")}  # type: ignore[attr-defined]
    again = [keyed(tmp_path / "train.npz", names={**NAMES, "train": names}).fingerprint
             for names in (NAMES["train"], NAMES["train"][::-1])]  # fmt: skip
    assert again[0] == found.fingerprint != again[1]


def broken(**change: Any) -> tuple[list[str], np.ndarray]:
    keys, logits = rows()
    if "key" in change:
        keys[3] = change["key"]
    if "logit" in change:
        logits[keys.index("tr-4.png"), 1] = change["logit"]
    return keys, logits[:, : change.get("classes", C)]


@pytest.mark.parametrize(("kind", "content", "words"), [
    ("npz", broken(key="nobody"), r"key 'nobody' stands twice, in rows \d+ and \d+"),
    ("npz", broken(key=""), r"row 3 has no key"),
    ("npz", rows(["validation", "test"]), r"no row for 12 of 12 train instances; the first is 'tr-0.png', instance 0 "
     r"\(the file's first key: '.*'\); add their rows, or leave"),
    ("npz", broken(classes=2), r"2 numbers a row; the data have 3 classes"),
    ("npz", broken(logit=np.nan), r"key 'tr-4.png' \(row \d+\), of instance 4 in train: NaN"),
    ("npz", (np.arange(24.0), rows()[1]), r"of type float; keys are texts or whole numbers"),
    ("npz", (np.array(rows()[0], dtype=object), rows()[1]), r"holds Python objects, which are never unpickled"),
    ("npz", (rows()[0][:-1], rows()[1]), r"23 keys and numbers of shape \[24, 3\]"),
    ("npz", (rows()[0], np.zeros((24, 3), np.int32)), r"'logits' holds int32; floating numbers"),
    ("csv", broken(key="nobody"), r"stands twice"),
    ("csv", broken(logit=np.nan), r"key 'tr-4.png' .*NaN"),
    ("csv", ([*np.arange(23.0), None], rows()[1]), r"type float; .* where one of them is missing"),
    ("parquet", broken(logit=np.inf), r"key 'tr-4.png' .*no finite number"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(kind: str, content: tuple[Any, Any], words: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"some.{kind}", *content)
    with pytest.raises(DataError, match=rf"teacher 'gpt': .*{words}"):
        keyed(tmp_path / f"some.{kind}")


def test_what_a_file_does_not_hold_is_one_line(tmp_path: Path) -> None:
    keys, logits = rows()
    np.savez(tmp_path / "bare.npz", logits=logits)
    csv(tmp_path / "some.csv", keys, logits)
    (tmp_path / "texts.jsonl").write_text('{"key": "a", "logits": ["x"]}\n')
    (tmp_path / "uneven.jsonl").write_text('{"key": "a", "logits": [1.0, 2.0]}\n{"key": "b", "logits": [1.0]}\n')
    (tmp_path / "cut.npz").write_bytes((tmp_path / "bare.npz").read_bytes()[:200])
    (tmp_path / "two.csv").write_text("key,ant,bee\na,1,2\n")
    for name, key, words in (
        ("bare.npz", "key", r"has no array 'keys'; it has logits"),
        ("some.csv", "file", r"has no column 'file' for the keys \(its teacher's `key`\); known: ant"),
        ("texts.jsonl", "key", r"column 'logits' holds lists of string; numbers are wanted"),
        ("uneven.jsonl", "key", r"row 1 \(key 'b'\) has 1 numbers where others have 2"),
        ("cut.npz", "key", r"can't be read as logits"),
        ("two.csv", "key", r"has a column for class 'ant' and none for class 'cow'"),
        ("nowhere.npz", "key", r"nowhere.npz can't be read as logits \(there is no such file\)"),
        ("some.txt", "key", r"logits are read from .npz, .*\.parquet.*by key.*safetensors"),
    ):
        with pytest.raises(DataError, match=words):
            keyed(tmp_path / name, key)
    part = {**NAMES, "test": [*NAMES["test"][:2], "x", "y", None]}
    npz(tmp_path / "some.npz", keys, logits)
    with pytest.raises(DataError, match=r"3 of 5 test instances; the first is 'x', .* take all of test's rows out"):
        keyed(tmp_path / "some.npz", names=part)


OWN = ["cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=2", "run.trackers=[]", "run.page=false",
       "alone.enabled=false"]  # fmt: skip


def own(folder: Path, **teacher: Any) -> tuple[list[str], list[str], np.ndarray]:
    """A command line's words for a user's own table with a column `file`, its rows' names, and logits of them."""
    g = np.random.default_rng(0)
    label = np.arange(60) % 2
    near, far = ((g.standard_normal((60, 1, 8, 8)) / 3 + label[:, None, None, None]).round(3) for _ in range(2))
    names = [f"pictures/{i:02d}.png" for i in g.permutation(60)]
    (folder / "data.jsonl").write_text("".join(
        json.dumps({"file": name, "near": x.tolist(), "far": y.tolist(), "label": int(c)}) + "\n"
        for name, x, y, c in zip(names, near, far, label, strict=True)))  # fmt: skip
    network = {"backbone": "digits-image"}
    teachers = [{"name": "far", "modalities": ["far"], **network}, {"name": "gpt", **teacher}]
    recipe = {"task": "own", "target": "near", "data": {"dir": str(folder / "data.jsonl")}, "batch_size": 16,
              "models": {"near": {"student": network, "teachers": teachers}}}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(folder / "recipe.yaml"), *OWN], names, np.eye(2, dtype=np.float32)[label] * 3


def test_a_users_own_rows_are_found_by_their_column(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    words, names, logits = own(tmp_path, logits=str(tmp_path / "gpt.npz"), key="names")
    np.savez(tmp_path / "gpt.npz", names=np.array(names[::-1]), logits=logits[::-1])
    refused(command("train", *words, "--out", tmp_path / "run"), "teacher 'gpt'", "data.key=COLUMN")
    refused(command("train", *words, "data.key=fil", "--out", tmp_path / "run"), "no column 'fil' (data.key)", "file")
    refused(command("train", *words, "data.key=near", "--out", tmp_path / "run"), "keys are texts or whole numbers")
    code, out, err = command("train", *words, "data.key=file", "--out", tmp_path / "run")
    assert code == 0, err
    assert "teacher 'gpt': logits by key of train 36, validation 12, test 12; 0 rows of others" in " ".join(out.split())
    rows = {entry["name"]: entry for entry in json.loads((tmp_path / "run" / "summary.json").read_text())["networks"]}
    assert rows["teacher gpt"]["test"]["accuracy"] == 1.0

    # the same logits by order: the same run, to the byte
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert command("logits", tmp_path / "run", "--network", "gpt", "--out", tmp_path / "gpt.safetensors")[0] == 0
    words, _, _ = own(tmp_path, logits=str(tmp_path / "gpt.safetensors"))
    other = train(config.load(words[0], words[1:]), tmp_path / "other")
    assert other.summary["networks"] == summary["networks"]
    assert other.summary["routing_share"] == summary["routing_share"]

    # what names instances isn't what a run is bound to: its networks' logits are written by any column
    words = ["logits", tmp_path / "other", "--network", "gpt", "--out", tmp_path / "again.npz"]
    refused(command(*words), "logits by key, and nothing names the instances", "data.key=COLUMN")
    refused(command("logits", tmp_path / "other", "data.dir=x", "--out", tmp_path / "again.npz"), "has its own data")
    refused(command(*words, "data.key=label"), "names two instances, train 0 and train 1", ".safetensors")
    assert command(*words, "data.key=file")[0] == 0
    with np.load(tmp_path / "again.npz", allow_pickle=False) as found:
        assert sorted(found["keys"]) == sorted(names)
        np.testing.assert_array_equal(found["logits"], logits[[names.index(key) for key in found["keys"]]])
    assert command("logits", tmp_path / "other", "data.key=file", "--top", "1", "--out", tmp_path / "one.npz")[0] == 0
    with np.load(tmp_path / "one.npz", allow_pickle=False) as found:
        assert found["values"].shape == found["indices"].shape == (60, 1)


def test_rows_without_a_name_have_an_order_alone(tmp_path: Path, command: Command) -> None:
    npz(tmp_path / "some.npz", *rows())
    both = {"name": "both", "backbone": "digits-both", "modalities": ["image", "audio"]}
    teachers = yaml.safe_dump([both, {"name": "gpt", "logits": str(tmp_path / "some.npz")}], default_flow_style=True)
    words = ["train", "av-digits", f"models.image.teachers={teachers}", "--out", tmp_path / "run"]
    refused(command(*words), "nothing names the instances of av-digits", "by the order of rows")
    refused(command(*words, "data.key=file"), "data.key: instances of task av-digits")
    teachers = teachers.replace("some.npz", "some.npy, key: id")
    refused(command("train", "av-digits", f"models.image.teachers={teachers}"), "key names the column of keys")


def test_prepared_rows_are_called_as_their_publisher_does(tmp_path: Path) -> None:
    items = [Item(f"clip-{i}", i, i % 3, 0) for i in range(6)]
    plan = Plan("toy", 1, {"x": Column((2,), "float32")}, items, lambda i: {"x": np.float32([i, 1])}, {})
    folder = build(tmp_path / "data", plan, Screen(True), workers=1)
    assert identities(Subset(PreparedSplit(folder, "all", read_card(folder)), np.array([4, 1]))) == ["clip-4", "clip-1"]


class Named:
    """Items in Python with a name each."""

    def __init__(self, split: str) -> None:
        self.name, self.split = split, splits()[split]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: int) -> dict[str, Any]:
        inputs, label = self.split.fetch(np.array([at]), ["m1", "m2"])
        return {**{name: x[0] for name, x in inputs.items()}, "id": NAMES[self.name][at], "label": int(label[0])}


def test_items_in_python_are_found_by_a_key_of_theirs(tmp_path: Path) -> None:
    npz(tmp_path / "some.npz", *rows())
    student, teachers = toy.networks()
    teachers.append(Teacher.from_logits("gpt", str(tmp_path / "some.npz")))

    def run(out: str, **data: Any) -> Any:
        return distill(student, teachers, Named("train"), Named("validation"), "m1", test=Named("test"), quiet=True,
                       out=tmp_path / out, settings=toy.merged(toy.SETTINGS, {"data": data}))  # fmt: skip

    with pytest.raises(DataError, match=r"nothing names the instances: settings=.*\"key\": NAME"):
        run("none")
    with pytest.raises(DataError, match=r"train: no item has 'idd' \(data.key\); did you mean id"):
        run("wrong", key="idd")
    found = {entry["name"]: entry for entry in run("run", key="id").summary["networks"]}
    right = LOGITS["test"].argmax(1) == splits()["test"].label
    assert found["teacher gpt"]["test"]["accuracy"] == pytest.approx(float(right.float().mean()))


def test_a_column_of_files_is_called_as_its_cells(tmp_path: Path) -> None:
    from PIL import Image

    from mstdistill.config import DataSettings
    from mstdistill.data.sources.own import open_own

    names = [f"./p/{i}.png" if i % 2 else str(tmp_path / f"p/{i}.png") for i in range(8)]
    (tmp_path / "p").mkdir()
    for i in range(8):
        Image.new("L", (4, 4), i).save(tmp_path / f"p/{i}.png")
    table = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    (tmp_path / "labels.csv").write_text("picture,label\n" + table)
    data = open_own(DataSettings(dir=str(tmp_path / "labels.csv"), key="picture"))
    assert data.kinds == {"picture": "image"}
    assert data.naming is not None
    assert data.naming(["all/1", "all/0"]) == [names[1], names[0]]
