"""Two runs on one folder: the second is refused in one line while the first lives, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mstdistill.config import load
from mstdistill.engine.run_lock import LOCK, run_lock
from mstdistill.errors import CheckpointError, ConfigError
from mstdistill.suite.plan import Cell
from mstdistill.suite.run import run_cell
from mstdistill.suite.sharing import Busy
from tests import ready

from . import toy

CPU = torch.device("cpu")
# Holds a folder, forks a child that outlives it, and says so.
HOLDER = """
import os, sys, time
from pathlib import Path
import torch
from mstdistill.engine.run_lock import run_lock
with run_lock(Path(sys.argv[1]), torch.device("cpu")):
    child = os.fork()
    if not child:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_the_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run", CPU):
        with pytest.raises(CheckpointError, match="another run uses this folder; wait for its end, or choose another"):
            toy.run(tmp_path / "run")
        done = ready.run("mstdistill.cli", "train", "av-digits", "--out", tmp_path / "run")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "another run uses this folder" in done.stderr
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK]
    with run_lock(tmp_path / "run", CPU):
        pass


def test_a_killed_run_holds_nothing_though_its_children_live(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(CheckpointError), run_lock(tmp_path, CPU):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # lives
        with run_lock(tmp_path, CPU):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_worker_waits_for_a_run_that_it_took_for_dead(tmp_path: Path) -> None:
    """Its cell isn't given up: the other one may finish it."""
    cell = Cell("av-digits", "image", "MST", 0, "key", load("av-digits"), "data")
    with run_lock(tmp_path / "cells" / cell.key / "run", CPU), pytest.raises(Busy, match="another run uses"):
        run_cell(cell, tmp_path)


@pytest.mark.distributed
def test_the_processes_of_a_run_share_its_folder_and_are_refused_together(tmp_path: Path) -> None:
    short = ("cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=1", "count=32")
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with run_lock(tmp_path / "run", CPU):
        done = ready.run("tests.toy", tmp_path / "run", *short, ranks=2, env=env)
        assert done.returncode != 0
        assert "another run uses this folder" in done.stderr
    done = ready.run("tests.toy", tmp_path / "run", *short, ranks=2, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_fresh_deletes_a_run_and_nothing_else(tmp_path: Path) -> None:
    short = ["cotrain.epochs=1", "specialise.epochs=0", "distill.epochs=1", "alone.enabled=false", "data.limit=60",
             "run.trackers=[]", "run.page=false"]  # fmt: skip
    run = tmp_path / "run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    done = ready.run("mstdistill.cli", "train", "av-digits", *short, "--out", tmp_path / "other", "--fresh")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    assert (tmp_path / "other" / "thesis.tex").exists()
    for _ in range(2):
        done = ready.run("mstdistill.cli", "train", "av-digits", *short, "--out", run, "--fresh")
        assert done.returncode == 0, done.stderr
        assert (run / "summary.json").exists()
        (run / "old").mkdir(exist_ok=True)
    assert not [path for path in run.iterdir() if path.name == "older"]


def test_a_place_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't be written to .* choose another --out"):
        toy.run(tmp_path / "file" / "run")
