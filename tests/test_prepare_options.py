"""Options of `prepare`: explained, checked in one place, refused in one line, from the command line and from Python."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from mstdistill.commands.prepare import example, parse
from mstdistill.data.options import Option, flag
from mstdistill.data.sources.registry import find_task, tasks
from mstdistill.errors import ConfigError, DataError, MstdistillError

from .conftest import Command, refused

TASKS = [task for task in tasks().values() if task.prepare]


# words after `prepare`, and what the one line says
WRONG = {
    "workers two": ("av-mnist --workers two", "av-mnist: --workers two: give a whole number, 1 or more"),
    "workers 0": ("av-mnist --workers 0", "--workers 0: give a whole number, 1 or more"),
    "workers -1": ("ravdess --workers -1", "--workers -1: give a whole number, 1 or more"),
    "workers 1.5": ("ravdess --workers=1.5", "--workers 1.5: give a whole number, 1 or more"),
    "max-broken 2%": ("ravdess --max-broken 2%", "ravdess: --max-broken 2%: give a number from 0 to 1"),
    "max-broken nan": ("crisismmd-v2 --max-broken nan", "--max-broken nan: give a number from 0 to 1"),
    "max-broken 2": ("crisismmd-v2 --max-broken 2", "--max-broken 2: give a number from 0 to 1"),
    "frames 0": ("vggsound-50k --frames 0", "--frames 0: give a whole number, 1 or more"),
    "dtype float8": ("vggsound-50k --dtype float8", "--dtype float8: give float16 or float32"),
    "faces off": ("ravdess --faces off", "--faces off: give auto, opencv or centre"),
    "size 480": ("nyu-depth-v2 --size 480", "--size '480'", "480x640"),
    "speakers": ("av-mnist --train-speakers jackson,,theo", "give names with commas between them"),
    "noise": ("av-digits --image-noise loud", "av-digits: --image-noise loud: give a number, 0 or more"),
    "seed": ("av-digits --seed 4294967296", "--seed 4294967296: give a whole number from 0 to 2147483647"),
    "empty": ("ravdess --source=", "ravdess: --source '': give a text"),
    "unknown option": ("ravdess --worker 3", "ravdess has no option '--worker'; did you mean workers"),
    "another task's": ("ravdess --frames 3", "ravdess has no option '--frames'"),
    "underscore": ("ravdess --max_broken 0.1", "ravdess has no option '--max_broken'; did you mean max-broken"),
    "short": ("ravdess -w 3", "ravdess has no option '-w'", "workers"),
    "no value at the end": (
        "ravdess --workers",
        "--workers needs a value, a whole number, 1 or more",
        "ravdess --help",
    ),
    "an option for a value": ("ravdess --source --workers 3", "ravdess: --source needs a value, a text"),
    "a word too many": ("ravdess downloads", "unexpected extra argument", "ravdess --help"),
    "options first": ("--workers 3 ravdess", "the task comes first", "mstdistill prepare TASK --workers"),
    "no task": ("", "name a task", "ravdess", "vggsound-50k"),
    "out alone": ("--out new", "name a task"),
    "empty out": ("--out= ravdess", "--out '': give a text"),
    "unknown task": ("ravdes --workers 3", "unknown task 'ravdes'", "did you mean ravdess"),
    "own": ("own --source x", "mstdistill check"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_one_line(case: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, *said = WRONG[case]
    refused(command("prepare", *words.split()), *said)
    assert not list(tmp_path.iterdir())


# a task, what Python gives it, and what the error says
VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "text for a number": ("av-mnist", {"workers": "two"}, "--workers two: give a whole number"),
    "a flag for a number": ("av-mnist", {"workers": True}, "--workers True: give a whole number"),
    "a fraction": ("ravdess", {"workers": 2.0}, "--workers 2.0: give a whole number, 1 or more"),
    "too small": ("vggsound-50k", {"frames": 0}, "--frames 0: give a whole number, 1 or more"),
    "infinite": ("ravdess", {"max_broken": float("inf")}, "--max-broken inf: give a number from 0 to 1"),
    "beyond floats": ("ravdess", {"max_broken": 10**400}, "give a number from 0 to 1"),
    "no choice": ("vggsound-50k", {"dtype": np.float16}, "give float16 or float32"),
    "not None": ("vggsound-50k", {"dtype": None}, "--dtype None: give float16 or float32"),
    "no path": ("ravdess", {"source": 3}, "--source 3: give a text"),
    "a list of other things": ("av-mnist", {"test_speakers": [1, "theo"]}, "give names with commas between them"),
    "nobody": ("av-mnist", {"test_speakers": []}, "give names with commas between them"),
    "unknown": ("ravdess", {"worker": 3}, "ravdess has no option '--worker'; did you mean workers"),
    "size": ("nyu-depth-v2", {"size": "480"}, "480x640"),
}


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_from_python(case: str, tmp_path: Path) -> None:
    task, given, said = VALUES[case]
    with pytest.raises(ConfigError) as error:
        find_task(task).prepare(tmp_path / "out", **given)  # type: ignore[misc]
    assert said in str(error.value)
    assert len(str(error.value)) < 200
    assert not list(tmp_path.iterdir())


def holds_other_data(tmp: Path) -> Path:
    (tmp / "other").mkdir()
    (tmp / "other" / "card.json").write_text('{"task": "ravdess"}')
    return tmp / "other"


def holds_papers(tmp: Path) -> Path:
    (tmp / "papers").mkdir()
    (tmp / "papers" / "card.json").write_text("[]")
    return tmp / "papers"


def a_file(tmp: Path) -> Path:
    (tmp / "file").write_text("")
    return tmp / "file"


def a_dangling_link(tmp: Path) -> Path:
    (tmp / "link").symlink_to(tmp / "gone")
    return tmp / "link"


OUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (a_file, "it is a file; name a folder"),
    "below a file": (lambda tmp: a_file(tmp) / "a" / "b", "file is a file; name a folder"),
    "a link to nothing": (a_dangling_link, "name a folder"),
    "another task's data": (holds_other_data, "holds data of 'ravdess' already"),
    "something else": (holds_papers, "holds something else already"),
    "too long a name": (lambda tmp: tmp / ("x" * 300), "too long"),
}


@pytest.mark.parametrize("case", OUTS)
@pytest.mark.parametrize("task", ["av-digits", "vggsound-50k"])
def test_folders_that_cannot_be_made(case: str, task: str, tmp_path: Path, command: Command) -> None:
    make, said = OUTS[case]
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    refused(command("prepare", task, "--out", out), "--out", said)
    with pytest.raises(DataError, match="--out"):
        find_task(task).prepare(out)  # type: ignore[misc]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # who runs the tests may be allowed everything
    with pytest.raises(DataError, match="can't be written to; choose another folder"):
        find_task("ravdess").prepare(tmp_path / "out")  # type: ignore[misc]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_help_shows_each_option(task: Any, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, shown, err = command("prepare", task.name, "--help")
    assert (code, err) == (0, "")
    assert f"Example: {example(task)}" in shown
    lines = " ".join(shown.replace("│", " ").split())
    for name, option in task.options.items():
        assert f"{flag(name)} " in lines
        assert " ".join(option.help.split()[:3]) in lines
        assert all(choice in lines for choice in option.choices)
        assert not option.default_shown or f"default: {option.default_shown}" in lines
    assert "--out" in lines
    words = example(task).split()
    assert words[:3] == ["mstdistill", "prepare", task.name]
    parse(task, words[3:])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_options_are_the_keywords_of_prepare(task: Any) -> None:
    folder, screen, *keywords = inspect.signature(task.prepare).parameters.values()
    assert (folder.name, screen.name) == ("folder", "screen")
    assert {keyword.name: keyword.default for keyword in keywords} == {
        name: option.default for name, option in task.options.items()
    }
    for name, option in task.options.items():
        assert option.check(name, option.default) == option.default
    assert pickle.loads(pickle.dumps(task)) == task  # for other processes


@pytest.mark.parametrize(("option", "given", "read"), [
    (Option("", int), "007", 7), (Option("", int), np.int64(3), 3), (Option("", int, least=1), None, None),
    (Option("", float), ".5", 0.5), (Option("", float), "1e-3", 0.001), (Option("", float), np.float32(0.5), 0.5),
    (Option("", float), 1, 1.0), (Option("", tuple), "a, b", ("a", "b")), (Option("", tuple), ["a"], ("a",)),
    (Option(""), Path("a/b"), "a/b"), (Option("", bool), "true", True), (Option("", bool), False, False),
])  # fmt: skip
def test_values_are_read_as_their_kind(option: Option, given: Any, read: Any) -> None:
    found = option.check("name", given)
    assert found == read
    assert type(found) is type(read)


def test_what_prepare_is_given() -> None:
    seen: list[Any] = []

    def prepare(folder: Path, screen: Any, **options: Any) -> Path:
        with screen.task("title", 2) as bar:
            bar.advance()
            bar.remark("a note")
        screen.say("nobody hears it")
        seen.append((folder, options))
        return folder

    options = {"count": Option("", int), "quick": Option("", bool), "names": Option("", tuple)}
    task = replace(find_task("ravdess"), prepare=prepare, options=options)
    words = ["--count=2", "--quick", "--count", "3", "--names", "a,b", "--out", "x"]
    assert parse(task, words) == {"count": 3, "quick": True, "names": ("a", "b"), "out": "x"}
    assert task.prepare is not None
    task.prepare("nowhere/yet", None, count="4")
    assert seen == [(Path("nowhere/yet"), {"count": 4})]
    with pytest.raises(typer.Exit):
        parse(task, ["--help"])
    for nowhere in ("", None):
        with pytest.raises(MstdistillError, match="give a text"):
            task.prepare(nowhere)
