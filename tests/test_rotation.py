"""What a run leaves out, the next ones take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .rotation import FAMILIES, PARTS, left_out, number_of_commit

ROOT = Path(__file__).parents[1]
MEMBERS = [name for members in FAMILIES.values() for name in members]


def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("first", [0, 7, 0xFFFF])
def test_as_many_runs_as_parts_take_every_test_once(first: int) -> None:
    names = [name if "[" in name else f"{name}{case}" for name in MEMBERS for case in ("[2]", "[3]")]
    names = [*dict.fromkeys(names), "tests/test_a.py::test_b"]
    runs = [set(names) - set(left_out(names, number)) for number in range(first, first + PARTS)]
    assert all("tests/test_a.py::test_b" in run for run in runs)
    assert sorted(name for run in runs for name in run if name != "tests/test_a.py::test_b") == sorted(names[:-1])
    assert all(len(run) > 1 for run in runs)


@pytest.mark.parametrize("name", MEMBERS)
def test_what_rotates_exists(name: str) -> None:
    path, function = name.split("[")[0].split("::")
    assert f"def {function}(" in (ROOT / path).read_text()


def test_a_case_by_itself_leaves_its_neighbours() -> None:
    case = next(name for name in MEMBERS if "[" in name)
    others = [f"{case.split('[')[0]}[{other}]" for other in ("a", "b", "c", "d", "e")]
    assert {name for number in range(PARTS) for name in left_out([case, *others], number)} == {case}


def test_commits_are_counted_and_a_shallow_clone_goes_by_its_hash(tmp_path: Path) -> None:
    assert number_of_commit(tmp_path) is None
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    whole.mkdir()
    git(whole, "init", "-q")
    numbers = []
    for _ in range(PARTS):
        git(whole, "commit", "-q", "--allow-empty", "-m", "x")
        numbers.append(number_of_commit(whole))
    assert numbers == list(range(1, PARTS + 1))
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{whole}", str(shallow))
    number = number_of_commit(shallow)
    assert number is not None
    assert number > 10**9
