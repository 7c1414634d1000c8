"""The first hour on a GPU, rehearsed: every stage leaves its result, whatever becomes of the ones before it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mstdistill.kernels.tiles import read

from mstdistill.gpu_day.__main__ import STAGES
from mstdistill.gpu_day.device import rehearsal
from mstdistill.gpu_day.stage import apart

ROOT = Path(__file__).parents[1]
# What a kernel that reads beyond its data, and one that takes its process with it, look like from outside.
BREAKS_ROUTING = """
import pytest

@pytest.fixture(autouse=True)
def broken(monkeypatch):
    from mstdistill.kernels.jit import router
    def route(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(router, "route", route)
"""
DIES = """
import os, signal, sys
if sys.orig_argv[-3:-1] == ["--alone", "benchmarks"]:
    os.kill(os.getpid(), signal.SIGSEGV)
"""

HANGS = """
import pathlib, subprocess, sys, time
if sys.orig_argv[-3:-1] == ["--alone", "kernels"]:
    child = subprocess.Popen(["sleep", "60"])
    (pathlib.Path(__file__).parent / "child").write_text(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the script needs: its results go beside it."""
    for name in ("mstdistill", "kernels", "tests", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def gpu_check(project: Path, *words: str, **extra: str) -> tuple[int, str, dict[str, Any]]:
    """The script's exit code, what it said, and every stage's result."""
    done = subprocess.run(
        [project / "scripts" / "gpu_check.sh", "--rehearse", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable, **extra},
    )  # fmt: skip
    folder = project / "benchmarks" / "results" / "rehearsal"
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return done.returncode, done.stdout + done.stderr, results


@pytest.mark.slow
def test_a_failing_kernel_stops_nothing_and_what_is_good_stays(project: Path, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "breaks_routing.py").write_text(BREAKS_ROUTING)
    (faults / "sitecustomize.py").write_text(DIES)
    some = ("--only", "kernels", "--only", "benchmarks", "--only", "tiles", "--only", "precision")
    code, said, found = gpu_check(project, *some, PYTHONPATH=str(faults), PYTEST_ADDOPTS="-p breaks_routing")
    assert code == 1, said
    assert not found["kernels"]["ok"]
    assert found["kernels"]["error"].startswith("1 of 1 tests fail: test_equals_float64")
    assert found["benchmarks"]["error"] == "its process ended with -11"
    assert found["precision"]["ok"], said
    assert found["tiles"]["ok"], said
    assert found["tiles"]["figures"]["timed"] == 4  # of two kernels what is chosen today, and one more
    read(project / "benchmarks" / "results" / "rehearsal" / "tiles" / "tiles.json")  # a launch table
    page = (project / "benchmarks" / "results" / "rehearsal" / "page.md").read_text()
    assert page.count("**failed**") == 2
    assert "| precision | half precision | good |" in page

    code, said, found = gpu_check(project)
    assert code == 0, said
    assert set(found) == {stage.name for stage in STAGES}
    assert all(one["ok"] and one["figures"] and not one.get("skipped") for one in found.values())
    assert "precision: half precision (has a result)" in said
    assert "a launch table of the better ones (has a result)" in said
    assert "kernels: the kernels against float64, " in said
    page = (project / "benchmarks" / "results" / "rehearsal" / "page.md").read_text()
    assert page.count("| good |") == len(STAGES)


def test_a_stage_that_hangs_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stage = replace(next(stage for stage in STAGES if stage.name == "kernels"), seconds=3.0, needs=())
    found = apart(stage, replace(rehearsal(), scale=1.0), tmp_path, ["--rehearse"])
    assert (found["ok"], found["error"]) == (False, "not done after 3 s")
    assert json.loads((tmp_path / "kernels.json").read_text()) == found
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("what it started lives on")


def test_stages_fit_in_eight_minutes() -> None:
    assert sum(stage.seconds for stage in STAGES) <= 480


def test_mistakes_are_a_line(project: Path) -> None:
    code, said, _ = gpu_check(project, "--only", "kernel")
    assert code == 2
    assert "invalid choice: 'kernel'" in said
