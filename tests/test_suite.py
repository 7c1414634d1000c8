"""Suites: what is refused before anything runs, who runs what, dead workers, shared stages, honest tables."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mstdistill.backbones.catalogue import build
from mstdistill.config import load as load_recipe
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError, Interrupted
from mstdistill.methods import find_method
from mstdistill.suite import claims
from mstdistill.suite import run as run_module
from mstdistill.suite.plan import Cell, Grid, load_suite, plan, records, save_suite, suite_names
from mstdistill.suite.run import Worker, run_suite
from mstdistill.suite.sharing import Busy, borrow, lend, shareable, sharing
from mstdistill.suite.stats import Comparison, holm, paired, ranks, spread
from mstdistill.suite.tables import judge, latex, markdown, save

from .conftest import Command, refused
from .ready import Program

SHORT = ["distill.epochs=1", "cotrain.epochs=1", "specialise.epochs=1", "baseline.teacher_epochs=1"]


def write_suite(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "mini",
        "tasks": [{"recipe": "av-digits", "targets": ["image"], "overrides": ["data.limit=200"]}],
        "seeds": [0, 1],
        "overrides": SHORT,
        "methods": [{"name": "KD", "method": "kd"}, {"name": "average", "method": "average"}, {"name": "MST"},
                    {"name": "MST, top-1", "overrides": ["routing.rule=topk-mean", "routing.signal=none"]}],
        **changes,
    }  # fmt: skip
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return plan(load_suite(str(write_suite(tmp_path))))


def record(accuracy: float, seconds: float = 1.0, **extra: Any) -> dict[str, Any]:
    student = {"name": "distilled student", "test": {"accuracy": accuracy}}
    return {"status": "done", "seconds": seconds, "borrowed": [], "seconds_borrowed": 0.0,
            "networks": {"distilled student": student}, **extra}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seds": [0]}, "unknown key 'seds'; did you mean seeds"),
        ({"methods": [{"name": "a", "methd": "kd"}]}, "methods.0.methd"),
        ({"methods": [{"name": "a", "method": "kdd"}]}, "unknown method 'kdd'; did you mean kd"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, "two methods are called 'a'"),
        ({"methods": [{"name": "a", "overrides": ["distil.epochs=1"]}]}, "unknown key 'distil'"),
        ({"tasks": [{"recipe": "av-digit", "targets": ["image"]}]}, "unknown task or recipe 'av-digit'"),
        ({"reference": "KDD"}, "reference 'KDD' is no method; did you mean KD"),
    ],
)
def test_a_typo_is_refused_before_anything_runs(
    change: dict[str, Any], words: str, command: Command, tmp_path: Path
) -> None:
    refused(command("reproduce", write_suite(tmp_path, **change), "--out", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


def test_cells_are_known_by_what_decides_their_figures(tmp_path: Path) -> None:
    first, again = (plan(load_suite(str(write_suite(tmp_path)))) for _ in range(2))
    assert [cell.key for cell in first.cells] == [cell.key for cell in again.cells]
    assert len({cell.key for cell in first.cells}) == 8
    other = plan(load_suite(str(write_suite(tmp_path)), ["distill.lr=0.5"]))
    assert not {cell.key for cell in first.cells} & {cell.key for cell in other.cells}
    fewer = plan(load_suite(str(write_suite(tmp_path)), ["seeds=[1]", "run.keep_checkpoints=3"]))
    assert {cell.key for cell in fewer.cells} < {cell.key for cell in first.cells}
    # seeds outermost: an unfinished suite compares all methods
    assert [cell.seed for cell in first.cells] == [0] * 4 + [1] * 4


def _race(folder: Path, won: Any, barrier: Any) -> None:
    barrier.wait()
    for number in range(20):
        claim = claims.take(folder / f"claim{number}", lambda: None, stale=0.2, beat=0.05)
        if claim is not None:
            won.put((number, os.getpid()))


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_race_one_wins(dead: bool, tmp_path: Path) -> None:
    """Fresh claims, and the claims of a worker that died."""
    if dead:
        for number in range(20):
            path = tmp_path / f"claim{number}"
            path.write_text(json.dumps({"token": f"t{number}", "host": "elsewhere", "pid": 1}))
            os.utime(path, (time.time() - 100, time.time() - 100))
    context = multiprocessing.get_context("fork")
    won, barrier = context.Queue(), context.Barrier(4)
    racers = [context.Process(target=_race, args=(tmp_path, won, barrier)) for _ in range(4)]
    for racer in racers:
        racer.start()
    found = [won.get(timeout=20) for _ in range(20)]
    for racer in racers:
        racer.join()
    assert sorted(number for number, _ in found) == list(range(20))
    assert won.empty()


def test_a_claim_lives_as_long_as_its_worker(tmp_path: Path) -> None:
    path, lost = tmp_path / "claim", []
    claim = claims.take(path, lambda: lost.append(1), stale=1.0, beat=0.05)
    assert claim is not None
    time.sleep(1.3)
    assert claims.take(path, lambda: None, stale=1.0) is None  # it was touched
    path.write_text(json.dumps({"token": "another", "host": "elsewhere", "pid": 1}))
    limit = time.monotonic() + 20.0
    while not lost and time.monotonic() < limit:
        time.sleep(0.05)
    assert lost == [1]
    claim.release()
    assert path.exists()  # it is another's now
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps({"token": "x", "host": claims.socket.gethostname(), "pid": gone.pid}))
    assert claims.take(path, lambda: None, stale=60.0) is not None  # no such process here: no need to wait


def test_failing_cells_are_tried_again_then_reported(grid: Grid, tmp_path: Path) -> None:
    tried: dict[str, int] = {}

    def run(cell: Cell, folder: Path) -> dict[str, Any]:
        tried[cell.title] = tried.get(cell.title, 0) + 1
        if cell.method == "KD" and cell.seed == 0:
            raise RuntimeError("out of luck")
        if cell.method == "average" and tried[cell.title] == 1:
            raise RuntimeError("once")
        if cell.method == "MST" and cell.seed == 1:
            raise ConfigError("this task is dense")
        return record(0.5)

    said: list[str] = []
    Worker(grid, tmp_path, run, said.append).work()
    assert tried["av-digits, image, KD, seed 0"] == 3
    assert tried["av-digits, image, average, seed 1"] == 2
    assert tried["av-digits, image, MST, seed 1"] == 1
    found = judge(grid, records(grid, tmp_path))
    assert found.trouble == [
        "av-digits, image, KD, seed 0: failed: RuntimeError: out of luck",
        "av-digits, image, MST, seed 1: refused: this task is dense",
    ]
    text = markdown(found)
    assert "## Not in the tables" in text
    assert "refused: this task is dense" in text
    logs = list(tmp_path.rglob("attempt-*.log"))
    assert len(logs) == 5
    assert "out of luck" in logs[0].read_text() + logs[-1].read_text() + logs[1].read_text()
    again: list[str] = []
    Worker(grid, tmp_path, run, again.append).work()
    assert again == []


def fake_run(cell: Cell, folder: Path) -> dict[str, Any]:
    log = folder / "log"
    with log.open("a") as file:
        file.write(f"{cell.key}\n")
    time.sleep(0.06)
    return record(int(cell.key[:6], 16) / 16**6)


def _fake_worker(grid: Grid, folder: Path) -> None:
    Worker(grid, folder, fake_run, lambda _: None).work()


def test_killed_workers_change_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.1)
    suite = write_suite(tmp_path, seeds=list(range(8)))
    grid = plan(load_suite(str(suite)))
    (tmp_path / "one").mkdir()
    Worker(grid, tmp_path / "one", fake_run, lambda _: None).work()
    shared = tmp_path / "many"
    shared.mkdir()
    context = multiprocessing.get_context("fork")

    def start() -> Any:
        process = context.Process(target=_fake_worker, args=(grid, shared))
        process.start()
        return process

    workers, kills = [start() for _ in range(3)], 0
    rng = np.random.default_rng(0)
    while len(records(grid, shared)) < len(grid.cells):
        time.sleep(float(rng.uniform(0.05, 0.12)))
        victim = workers[int(rng.integers(3))]
        if victim.is_alive() and kills < 8:
            os.kill(victim.pid, signal.SIGKILL)
            kills += 1
        workers = [w if w.is_alive() else start() for w in workers]
    for worker in workers:
        worker.join(timeout=20)
    assert kills > 0
    ran = (shared / "log").read_text().split()
    assert set(ran) == {cell.key for cell in grid.cells}
    assert len(ran) <= len(grid.cells) + kills  # nobody ran what another held
    tables = [markdown(judge(grid, records(grid, folder))) for folder in (tmp_path / "one", shared)]
    assert tables[0] == tables[1]


def test_a_folder_without_runs_of_this_code_has_no_page(tmp_path: Path, command: Command) -> None:
    (tmp_path / "cells").mkdir()
    code, _, err = command("report", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "suite.json isn't there" in err
    save_suite(load_suite(str(write_suite(tmp_path, seeds=[0]))), tmp_path)
    code, _, err = command("report", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no finished run of this code" in err


@pytest.mark.slow
def test_a_suite_from_the_command_line(tmp_path: Path, command: Command) -> None:
    """One process and two, with a worker killed on the way: the same figures; teachers are trained once."""
    suite = write_suite(tmp_path, seeds=[0])
    code, shown, err = command("reproduce", suite, "--out", tmp_path / "one")
    assert (code, err) == (0, "")
    assert "mini: test accuracy in %" in shown
    grid = plan(load_suite(str(suite)))
    found = records(grid, tmp_path / "one")
    borrowed = {cell.method: record["borrowed"] for cell, record in found.items()}
    assert borrowed == {"KD": [], "average": ["teacher-both"], "MST": [], "MST, top-1": ["cotrain"]}
    assert command("reproduce", suite, "--out", tmp_path / "one")[0] == 0  # nothing left to run
    assert command("report", tmp_path / "one")[0] == 0
    assert "average" in (tmp_path / "one" / "report.html").read_text()
    words = ["reproduce", str(suite), "--out", str(tmp_path / "two"), "--worker"]
    killed = Program("mstdistill.cli", *words)
    while not list((tmp_path / "two").glob("cells/*/run/binding.json")):
        time.sleep(0.05)
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    run_suite(grid, tmp_path / "two", 2, words, Screen(quiet=True))
    figures = [
        {k: {m: c["values"] for m, c in v["methods"].items()} for k, v in enumerate(json.loads(
            (folder / "table.json").read_text())["columns"])}
        for folder in (tmp_path / "one", tmp_path / "two")
        if save(judge(grid, records(grid, folder)), folder)
    ]  # fmt: skip
    assert figures[0] == figures[1]


def test_stages_are_shared_by_what_they_depend_on(grid: Grid, tmp_path: Path) -> None:
    kd, average, mst, top = (cell.recipe for cell in grid.cells[:4])
    keys = [shareable(recipe, "code", "data") for recipe in (kd, average, mst, top)]
    assert keys[0]["teacher-both"] == keys[1]["teacher-both"]
    assert keys[2]["cotrain"] == keys[3]["cotrain"]
    assert "cotrain" not in keys[0]
    assert set(keys[0]) == {"teacher-both"}
    assert set(keys[1]) == {"teacher-both", "teacher-audio"}
    assert shareable(kd.model_copy(update={"method": "alone"}), "code", "data") == {}
    longer = kd.model_copy(update={"baseline": kd.baseline.model_copy(update={"teacher_epochs": 9})})
    assert shareable(longer, "code", "data")["teacher-both"] != keys[0]["teacher-both"]
    assert shareable(kd, "code", "other")["teacher-both"] != keys[0]["teacher-both"]
    folded = [mst.model_copy(update={"routing": mst.routing.model_copy(update={"reads": "teachers", "folds": count})})
              for count in (2, 3)]  # fmt: skip
    two, three = (shareable(recipe, "code", "data") for recipe in folded)
    assert two.keys() == {"cotrain", "fold-1", "fold-2"}
    assert two["cotrain"] == three["cotrain"] == keys[2]["cotrain"]
    assert two["fold-1"] not in (two["fold-2"], three["fold-1"])
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "teacher-both").mkdir(parents=True)
    (run / "teacher-both" / "result.safetensors").write_bytes(b"weights")
    (run / "teacher-both" / "result.json").write_text('{"seconds": 2}')
    lend(tmp_path, run, keys[0])
    assert borrow(tmp_path, other, keys[1]) == ["teacher-both"]
    assert (other / "teacher-both" / "result.safetensors").read_bytes() == b"weights"
    assert borrow(tmp_path, other, keys[1]) == []


def test_a_shared_stage_is_run_by_one_worker_at_a_time(tmp_path: Path) -> None:
    keys = {"teacher-both": "abc"}

    def finish(run: Path) -> None:
        (run / "teacher-both").mkdir(parents=True)
        (run / "teacher-both" / "result.safetensors").write_bytes(b"weights")
        (run / "teacher-both" / "result.json").write_text("{}")

    with sharing(tmp_path, tmp_path / "first", keys) as first:
        with pytest.raises(Busy), sharing(tmp_path, tmp_path / "second", keys):
            raise AssertionError("two workers train one teacher")
        finish(tmp_path / "first")
        first.finished("teacher-both")
        with sharing(tmp_path, tmp_path / "second", keys) as second:  # the first cell isn't over yet
            assert second.borrowed == ["teacher-both"]
    with pytest.raises(KeyError), sharing(tmp_path, tmp_path / "third", {"cotrain": "def"}):
        raise KeyError  # a cell that fails gives its stages up
    with sharing(tmp_path, tmp_path / "fourth", {"cotrain": "def"}) as fourth:
        assert fourth.borrowed == []
    assert not list((tmp_path / "stages").glob("*.claim"))


def test_a_cell_whose_stage_is_being_run_elsewhere_waits(grid: Grid, tmp_path: Path) -> None:
    free, ran = [False], []

    def run(cell: Cell, folder: Path) -> dict[str, Any]:
        if cell.method == "average" and not free[0]:
            free[0] = len(ran) == len(grid.cells) - 2
            raise Busy("teacher-both")
        ran.append(cell.method)
        return record(0.5)

    said: list[str] = []
    Worker(grid, tmp_path, run, said.append).work()
    assert ran[-2:] == ["average", "average"]
    assert len(ran) == len(grid.cells)
    assert not list(tmp_path.rglob("attempts.json"))


def test_a_worker_that_is_asked_to_stop_gives_its_cell_back(grid: Grid, tmp_path: Path) -> None:
    def run(cell: Cell, folder: Path) -> dict[str, Any]:
        raise Interrupted("stopped in distill, epoch 3; state saved")

    with pytest.raises(Interrupted):
        Worker(grid, tmp_path, run, lambda _: None).work()
    assert records(grid, tmp_path) == {}
    assert not list(tmp_path.rglob("claim"))
    Worker(grid, tmp_path, fake_run, lambda _: None).work()
    assert len(records(grid, tmp_path)) == len(grid.cells)


@pytest.mark.slow
def test_workers_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it: nothing goes on, nothing is recorded, and the same command goes on."""
    suite = write_suite(tmp_path, seeds=[0], overrides=["distill.epochs=50000", "cotrain.epochs=1",
                        "specialise.epochs=1", "baseline.teacher_epochs=1", "run.checkpoint_seconds=1"])  # fmt: skip
    process = Program("mstdistill.cli", "reproduce", suite, "--out", tmp_path / "out", "--workers", 2)
    while len(list((tmp_path / "out").glob("cells/*/run/distill"))) < 2:
        time.sleep(0.1)
        assert process.poll() is None
    pids = [json.loads(path.read_text())["pid"] for path in (tmp_path / "out").glob("cells/*/claim")]
    process.send_signal(signal.SIGTERM)
    done = process.wait(60.0)
    err = done.stderr
    assert done.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not list((tmp_path / "out").glob("cells/*/cell.json"))


def test_intervals_and_tests_are_scipys() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 7), rng.normal(0.78, 0.02, 7)
    found = paired(dict(enumerate(a)), {**dict(enumerate(b)), 99: 0.1})
    wanted = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(wanted.pvalue)
    low, high = wanted.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.pairs == 7
    one = spread([0.5])
    assert one.mean == 0.5
    assert math.isnan(one.half)
    same = paired({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6})
    assert same.p > 0.01  # three seeds that agree are no proof, however exactly
    assert ranks([{"a": 0.9, "b": 0.8, "c": 0.8}, {"a": 0.1, "b": 0.5, "c": 0.3}]) == {"a": 2.0, "b": 1.75, "c": 2.25}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(values: list[float]) -> None:
    made = {str(i): Comparison(0, 0, 0, p, p, 0, 5) for i, p in enumerate(values)}
    adjusted = holm(made)
    order = sorted(made, key=lambda name: made[name].p)
    found = [adjusted[name].adjusted for name in order]
    assert found == sorted(found)
    assert all(adjusted[name].p <= adjusted[name].adjusted <= min(1.0, len(values) * max(values)) for name in made)
    assert found[0] == pytest.approx(min(1.0, len(values) * min(values)))


@pytest.mark.parametrize(("gap", "bold"), [(0.001, False), (0.2, True)])
def test_a_figure_is_bold_only_where_the_test_says_so(gap: float, bold: bool, tmp_path: Path) -> None:
    grid = plan(load_suite(str(write_suite(tmp_path)), ["seeds=[0,1,2,3,4]"]))
    rng = np.random.default_rng(1)
    base = rng.normal(0.7, 0.02, 5)
    made = {cell: record(base[cell.seed] + rng.normal(0, 0.01) + (gap if cell.method == "MST" else 0))
            for cell in grid.cells}  # fmt: skip
    found = judge(grid, made)
    assert (found.best == {("av-digits", "image"): "MST"}) is bold
    assert ("**" in markdown(found).split("##")[0].split("Holm")[1]) is bold
    assert (r"\textbf" in latex(found)) is bold
    paths = save(found, tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex", "table.json"]
    rows = paths[1].read_text().splitlines()
    assert len(rows) == 21
    assert float(rows[1].split(",")[-1]) == made[grid.cells[0]]["networks"]["distilled student"]["test"]["accuracy"]


def test_tables_keep_to_themselves_where_data_lie(tmp_path: Path) -> None:
    grid = plan(load_suite(str(write_suite(tmp_path))))
    grid.suite.overrides = ["data.dir=/home/me/data", "data.limit=5"]
    grid.suite.tasks[0].overrides = ["data.dir=/home/me/other"]
    save(judge(grid, {cell: record(0.5) for cell in grid.cells}), tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["suite"]["overrides"] == ["data.limit=5"]
    assert not any("/home/me" in path.read_text() for path in tmp_path.glob("table.*"))
    assert "data.dir=/home/me/data" in grid.suite.overrides


def test_settings_are_chosen_by_validation_figures(tmp_path: Path) -> None:
    grid = plan(load_suite(str(write_suite(tmp_path)), ["split=validation"]))
    both = {"distilled student": {"test": {"accuracy": 0.1}, "validation": {"accuracy": 0.9}}}
    found = judge(grid, {cell: record(0.0, networks=both) for cell in grid.cells})
    assert found.values["av-digits", "image"]["KD"] == {0: 0.9, 1: 0.9}
    assert "Validation accuracy in %" in markdown(found)
    assert "est accuracy" not in markdown(found)


@pytest.mark.parametrize("name", suite_names())
def test_the_shipped_suites_name_what_exists(name: str) -> None:
    suite = load_suite(name)
    for task in suite.tasks:
        for target in task.targets:
            for method in suite.methods:
                overrides = [*suite.overrides, *task.overrides, f"method={method.method}", f"target={target}"]
                recipe = load_recipe(task.recipe, [*overrides, *method.overrides], method.presets)
                find_method(recipe.method)
                for teacher in recipe.pairing.teachers:
                    _has(str(teacher.backbone), json.dumps(teacher.options), tuple(teacher.taps))
                _has(str(recipe.pairing.student.backbone), json.dumps(recipe.pairing.student.options), ())


@lru_cache
def _has(backbone: str, options: str, taps: tuple[str, ...]) -> None:
    with torch.device("meta"):
        network = build(backbone, 10, **json.loads(options))
    for tap in taps:
        network.get_submodule(tap)


def test_teachers_that_methods_share_are_one_line(tmp_path: Path) -> None:
    same = {"method": "mst", "overrides": ["routing.k=2"]}
    methods = [{"name": "one", "method": "mst"}, {"name": "two", **same}, {"name": "three", **same}]
    grid = plan(load_suite(str(write_suite(tmp_path, methods=methods, seeds=[0, 1]))))

    def result(cell: Cell) -> dict[str, Any]:
        teacher = 0.5 if cell.method == "three" else 0.9
        found = record(0.8)
        found["networks"]["teacher both"] = {"test": {"accuracy": teacher + 0.01 * cell.seed}}
        return found

    (teachers,) = judge(grid, {cell: result(cell) for cell in grid.cells}).teachers.values()
    assert list(teachers) == ["teacher both (one and 1 more)", "teacher both (three)"]
    assert teachers["teacher both (three)"].mean == pytest.approx(0.505)
