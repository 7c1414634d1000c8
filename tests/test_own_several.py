"""A user's own data with several classes an instance: every form of its labels, a run from files, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mstdistill
from mstdistill import Student
from mstdistill.backbones.catalogue import backbones
from mstdistill.cli import app
from mstdistill.config import parse
from mstdistill.data.present import presence
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError, DataError
from mstdistill.pipeline import train

from .test_own_data import arrays, everything, opened, saved
from .test_own_data import home as home  # a fixture that all here use

NAMES = ("cat", "dog", "owl")
# Of four rows in turn: both of the first, none, nothing known, the last.
HOT = [[1, 1, 0], [0, 0, 0], None, [0, 0, 1]]
READ = [[1, 1, 0], [0, 0, 0], [-1, -1, -1], [0, 0, 1]]


def columns(count: int, label: list[Any]) -> dict[str, Any]:
    return {**arrays(count), "label": [label[i % len(label)] for i in range(count)]}


@pytest.mark.parametrize(("label", "names"), [
    (HOT, ("0", "1", "2")),
    ([[True, True, False], [False] * 3, None, [False, False, True]], ("0", "1", "2")),
    ([["cat", "dog"], [], None, ["owl"]], NAMES),
    ([[4, 7], [], None, [9]], ("4", "7", "9")),
])  # fmt: skip
def test_lists_of_every_form_mean_the_same(label: list[Any], names: tuple[str, ...], tmp_path: Path) -> None:
    location = saved(tmp_path / "d", columns(80, label))
    data, splits = opened(location, "age", columns={"age": "age"}, multilabel=True)
    assert data.task.class_names == names
    assert data.task.multilabel
    assert "20 instances have no label and are left out" in " ".join(data.notes)
    for split in splits.values():
        rows, found = everything(split, "age")
        assert [row.tolist() for row in found] == [READ[int(age) % 4] for age in rows["age"]]
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [36, 12, 12]
    _, learned = opened(location, "age", columns={"age": "age"}, multilabel=True, unlabelled="learn")
    assert [len(learned[name]) for name in ("train", "validation", "test")] == [36 + 20, 12, 12]


def test_rows_may_lack_a_modality_too(tmp_path: Path) -> None:
    content = columns(40, HOT)
    content["wide"] = [None if i % 5 == 0 else row for i, row in enumerate(content["wide"])]
    location = saved(tmp_path / "d", content)
    wanted = {"age": "age", "wide": "wide"}
    _, splits = opened(location, *wanted, columns=wanted, multilabel=True, missing="allow")
    for split in splits.values():
        rows, found = everything(split, *wanted)
        assert [row.tolist() for row in found] == [READ[int(age) % 4] for age in rows["age"]]
        assert presence(split)["wide"].tolist() == [int(age) % 5 > 0 for age in rows["age"]]
    report = mstdistill.check(location, columns=wanted, multilabel=True, missing="allow")
    assert not report.wrong
    assert report.figures["modalities"]["wide"]["present"] == 0.8


def test_columns_of_flags_and_named_classes(tmp_path: Path) -> None:
    import datasets

    content = {
        **arrays(40),
        "cat": [i % 2 for i in range(40)],
        "dog": [None if i % 5 == 0 else i % 3 == 0 for i in range(40)],
    }
    data, splits = opened(saved(tmp_path / "d", content), "age", columns={"age": "age"}, label_columns=["cat", "dog"])
    assert data.task.class_names == ("cat", "dog")
    rows, found = everything(splits["train"], "age")
    age = rows["age"][:, 0].long()
    assert torch.equal(found[:, 0], age % 2)
    assert torch.equal(found[:, 1], torch.where(age % 5 == 0, -1, (age % 3 == 0).long()))
    named = columns(20, [[0, 2], [1], [], [2]])
    location = saved(tmp_path / "named", named, label=datasets.Sequence(datasets.ClassLabel(names=list(NAMES))))
    data, _ = opened(location, "age", columns={"age": "age"}, multilabel=True)
    assert data.task.class_names == NAMES
    assert data.numbers["all"][:4].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(("label", "row"), [
    (HOT, 0), ([[1, 0, 0], [0, 0, 1], [0, 1, 1]], 2), ([["cat", "dog"], [], None, ["owl"]], 0), ([[4], [7, 9]], 1),
])  # fmt: skip
def test_lists_that_are_no_single_class_name_the_setting(label: list[Any], row: int, tmp_path: Path) -> None:
    location = saved(tmp_path / "d", columns(40, label))
    words = (
        rf"labels are lists, several classes an instance \(multi-label; all/{row} holds .*: write data.multilabel=true"
    )
    with pytest.raises(DataError, match=words):
        opened(location, "age")
    code = CliRunner().invoke(app, ["check", location])
    assert code.exit_code
    assert "data.multilabel=true" in str(code.exception)
    one, _ = opened(saved(tmp_path / "one", columns(40, [[1, 0], [0, 1], None])), "age")  # a class each: as ever
    assert not one.task.multilabel


@pytest.mark.parametrize(("settings", "label", "words"), [
    ({}, HOT, r"\(multi-label; all/0 holds \[1, 1, 0\]\): write data\.multilabel=true"),
    ({"multilabel": True}, ["cat", "dog"], r"train/0|all/0 holds 'cat': data\.multilabel wants lists of classes"),
    ({"multilabel": True}, [["cat"], ["cat"]], "holds 1 different classes; at least two are wanted"),
    ({"multilabel": True}, [[1.5], [0.25]], "classes are whole numbers or words"),
    ({"label_columns": ["age"]}, HOT, r"column 'age': all/2 holds 2: 0, 1 or nothing is wanted"),
    ({"label_columns": ["agee"]}, HOT, r"no column 'agee' for the classes \(data\.label_columns\)"),
])  # fmt: skip
def test_labels_that_are_none_are_a_line(
    settings: dict[str, Any], label: list[Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        opened(saved(tmp_path / "d", columns(20, label)), "narrow", columns={"narrow": "narrow"}, **settings)


def test_a_run_from_files_to_its_report(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    g = np.random.default_rng(0)
    has = g.integers(0, 2, (80, 3))
    shown = [Image.fromarray((g.integers(0, 90, (28, 28)) + 120 * one).astype(np.uint8)) for one in has[:, 0]]
    heard = (g.standard_normal((80, 1, 32, 32)) + has[:, 1, None, None, None]).tolist()
    label = [[name for name, one in zip(NAMES, row, strict=True) if one] for row in has]
    folder = saved(tmp_path / "d", {"seen": shown, "heard": heard, "what": label}, seen=datasets.Image())
    looked = CliRunner().invoke(
        app, ["check", folder, "--label", "what", "--multilabel", "--out", str(tmp_path / "f.json")]
    )
    assert looked.exit_code == 0, looked.output
    assert json.loads((tmp_path / "f.json").read_text())["label"]["classes"] == dict(
        zip(NAMES, has.sum(axis=0).tolist(), strict=True)
    )
    teacher = {"name": "heard", "modalities": ["heard"],
               "backbone": next(name for name, b in backbones().items() if b.inputs == ((1, 32, 32),))}  # fmt: skip
    content: dict[str, Any] = {
        "task": "own", "target": "seen", "data": {"dir": folder, "label": "what", "multilabel": True}, "batch_size": 16,
        "models": {"seen": {"student": {"backbone": "LeNet5"}, "teachers": [teacher]}},
        "cotrain": {"epochs": 1}, "distill": {"epochs": 2, "lr": 1e-3}, "alone": {"enabled": False},
        "run": {"trackers": []},
    }  # fmt: skip
    result = train(parse(content), tmp_path / "run", Screen(True))
    assert 0 < result.summary["networks"][-1]["test"]["map_macro"] <= 1
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert config["class_names"] == list(NAMES)
    student = Student.from_pretrained(tmp_path / "run" / "student")
    assert student.predict(torch.rand(2, 1, 28, 28)).shape == (2, 3)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "average precision of class owl" in done.output
    assert "map_macro" in json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    for drawn_by in ("the run", "the command"):
        page = (tmp_path / "run" / "report.html").read_text()
        assert "Average precision of each class on test" in page, drawn_by
        assert "mAP on test" in page
        assert "has a mean average precision of" in page
        if drawn_by == "the run":
            done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
            assert done.exit_code == 0, done.output
    with pytest.raises(ConfigError, match=r"data\.multilabel: an instance of task av-digits has one class"):
        mstdistill.train(mstdistill.load("av-digits", ["data.multilabel=true"]), tmp_path / "no")
