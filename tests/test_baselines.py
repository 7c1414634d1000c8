"""The comparison's methods: whole runs, resumption to the byte, several processes, and mistakes.

In processes of its own (`main` with OUT BATCH METHOD) it trains a method on the toy task.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mstdistill import Teacher, distill
from mstdistill.config import PRESETS, load
from mstdistill.errors import ConfigError
from mstdistill.methods import BASELINES, find_method
from mstdistill.methods.baseline import Baseline, options_of

from . import ready
from .conftest import MLP
from .test_shapes import Dense, dense_split
from .toy import SETTINGS, merged, networks, run

ROOT = Path(__file__).parents[1]
OWN: dict[str, dict[str, Any]] = {"crd": {"negatives": 16}, "mgdfr": {"repeats": 2}}
DENSE = ("alone", "average", "c2kd", "dist", "dkd", "fitnets", "kd", "mgdfr", "pseudo", "rkd")


def settings(method: str, **changes: Any) -> dict[str, Any]:
    base = {
        "method": method, "baseline": {"teacher_epochs": 2, "options": OWN.get(method, {})}, "distill": {"epochs": 2},
        "alone": {"enabled": False}, "run": {"checkpoint_seconds": 1000.0},
    }  # fmt: skip
    return merged(base, changes)


def results(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/result.safetensors")}


# whole runs


@pytest.mark.parametrize("teacher", ["multimodal", "crossmodal"])
@pytest.mark.parametrize("method", BASELINES)
def test_every_method_trains_in_both_settings(method: str, teacher: str, tmp_path: Path) -> None:
    compared = method == "kd"
    chosen = settings(method, count=48, baseline={"teacher": teacher}, alone={"enabled": compared})
    out = run(tmp_path, **chosen)
    taught = {"alone": [], "average": ["both", "other"]}.get(method, ["both" if teacher == "multimodal" else "other"])
    rows = [entry["name"] for entry in out.summary["networks"]]
    first = ["student alone"] if compared else []
    assert rows == [*first, *(f"teacher {name}" for name in taught), "distilled student"]
    assert out.summary["routing_share"] == {}
    stages = {"fitnets": ["hint"], "mgdfr": ["joint", "salience"], "kd": ["alone"]}.get(method, [])
    assert set(results(tmp_path)) == {"distill", *stages, *(f"teacher-{name}" for name in taught)}
    assert (tmp_path / "student" / "config.json").exists()
    history = json.loads((tmp_path / "distill" / "result.json").read_text())["history"]
    assert all(torch.isfinite(torch.tensor(value)) for record in history for value in record.values())
    if teacher == "multimodal":
        steps: list[str] = []
        again = run(tmp_path, observe=lambda stage, step, parts: steps.append(stage), **chosen)
        assert steps == []
        assert again.summary["networks"] == out.summary["networks"]


@pytest.mark.parametrize("method", ["c2kd", "crd", "fitnets", "rkd"])
def test_bfloat16_stays_finite(method: str, tmp_path: Path) -> None:
    out = run(tmp_path, count=48, **settings(method, precision="bf16", distill={"epochs": 4}))
    assert out.summary["networks"][-1]["validation"]["loss"] < 2.0


def run_dense(out: Path, method: str, **changes: Any) -> Mapping[str, Any]:
    torch.manual_seed(0)
    teachers = [Teacher("both", Dense(8), ("rgb", "depth"), ("enc",)), Teacher("depth", Dense(4), ("depth",), ("enc",))]
    return distill(
        Dense(4), teachers, dense_split(16, 1), dense_split(8, 2), "rgb", ignore_index=0, out=out, quiet=True,
        settings=merged(SETTINGS, merged(settings(method, batch_size=4), changes)),
    ).summary  # fmt: skip


@pytest.mark.parametrize("method", BASELINES)
def test_dense_tasks_train_or_say_why_not(method: str, tmp_path: Path) -> None:
    if method in DENSE:
        summary = run_dense(tmp_path, method, baseline={"teacher": "crossmodal"})
        assert 0 <= summary["networks"][-1]["validation"]["accuracy"] <= 1
        return
    with pytest.raises(ConfigError, match=f"method {method} can't run a dense task: ") as error:
        run_dense(tmp_path, method)
    assert "\n" not in str(error.value)


class Stop(Exception):
    """An interruption at a step."""


@pytest.mark.parametrize(("method", "stops"), [
    ("crd", [("teacher-both", 4), ("distill", 1), ("distill", 5)]),
    ("fitnets", [("hint", 1), ("hint", 5), ("distill", 4)]),
    ("mgdfr", [("joint", 1), ("joint", 5), ("distill", 0), ("distill", 4)]),
    ("c2kd", [("distill", 1), ("distill", 5)]),
])  # fmt: skip
def test_interrupted_runs_end_with_the_same_bytes(method: str, stops: list[tuple[str, int]], tmp_path: Path) -> None:
    """Checkpoints every two steps, dropout: the interruption falls between two of them and after one."""
    often = settings(method, dropout=0.2, count=48, run={"checkpoint_seconds": 0.0, "checkpoint_steps": 2})
    run(tmp_path / "whole", **often)
    for place in stops:

        def stop(stage: str, step: int, parts: Any, place: tuple[str, int] = place) -> None:
            if (stage, step) == place:
                raise Stop

        with pytest.raises(Stop):
            run(tmp_path / "parts", observe=stop, **often)
    run(tmp_path / "parts", **often)
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for stage in whole:
        assert whole[stage] == parts[stage], f"{stage} differs"


def test_a_teacher_is_the_same_for_every_method(tmp_path: Path) -> None:
    for method in ("kd", "mgdfr"):
        run(tmp_path / method, **settings(method, baseline={"alpha": 0.3 if method == "kd" else 0.5}))
    assert results(tmp_path / "kd")["teacher-both"] == results(tmp_path / "mgdfr")["teacher-both"]


@pytest.mark.parametrize("method", ["rkd", "fitnets"])
def test_tables_and_live_teachers_give_the_same(method: str, tmp_path: Path) -> None:
    for mode in ("always", "never"):
        run(tmp_path / mode, **settings(method, distill={"cache": {"mode": mode}}))
    states = [load_file(tmp_path / mode / "distill" / "result.safetensors") for mode in ("always", "never")]
    for name in states[0]:
        assert (states[0][name] - states[1][name]).abs().max() <= 2e-5, name


@pytest.mark.parametrize("method", ["kd", "fitnets", "dkd"])
def test_accumulated_micro_batches_equal_one_batch(method: str, tmp_path: Path) -> None:
    """Losses that are sums over instances; 38 of them leave a short last step."""
    run(tmp_path / "whole", count=38, **settings(method, batch_size=16))
    run(tmp_path / "parts", count=38, **settings(method, batch_size=4, accumulate=4))
    whole, parts = (load_file(tmp_path / name / "distill" / "result.safetensors") for name in ("whole", "parts"))
    for name in whole:
        assert (whole[name] - parts[name]).abs().max() <= 2e-5, name


def test_ready_teachers_are_used_as_they_are(tmp_path: Path) -> None:
    from .conftest import make_split

    def train(method: str) -> Path:
        student, teachers = networks()
        teachers[1].frozen = True
        before = [x.clone() for x in teachers[1].module.state_dict().values()]
        distill(student, teachers, make_split(32, seed=1), make_split(16, seed=2), "m1", out=tmp_path / method,
                quiet=True, settings=merged(SETTINGS, settings(method, baseline={"teacher": "other"})))  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(before, teachers[1].module.state_dict().values(), strict=True))
        return tmp_path / method

    assert not (train("kd") / "teacher-other").exists()
    with pytest.raises(ConfigError, match="method c2kd trains its teacher, and 'other' is frozen"):
        train("c2kd")


# several processes


def train_wide(out: Path, batch: int, method: str) -> None:
    """75 instances: the last step is short and uneven over the ranks."""
    run(out, count=75, **settings(method, batch_size=batch))


@pytest.mark.distributed
def test_two_processes_equal_one_of_a_wide_batch(tmp_path: Path) -> None:
    """Teachers, hints, students and CRD's memories within 2e-5 after every stage; FitNets' last stage is KD itself."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for method in ("crd", "fitnets"):
        train_wide(tmp_path / f"one-{method}", 16, method)
        done = ready.run("tests.test_baselines", tmp_path / f"two-{method}", 8, method, ranks=2, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        for stage in results(tmp_path / f"one-{method}"):
            one, two = (load_file(tmp_path / f"{n}-{method}" / stage / "result.safetensors") for n in ("one", "two"))
            assert one.keys() == two.keys()
            for name in one:
                assert (one[name] - two[name]).abs().max() <= 2e-5, f"{method} {stage} {name}"


# settings


def test_alpha_is_halved_after_every_thirtieth_epoch() -> None:
    method = Baseline.__new__(Baseline)
    method.settings = load("av-digits").baseline
    assert [method.alpha(e) for e in (0, 29, 30, 59, 60, 90)] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.0625]


def test_released_presets_fit_their_methods() -> None:
    for name in [name for name in PRESETS if name.startswith("released-")]:
        recipe = load("av-digits", presets=[name])
        assert (recipe.distill.epochs, recipe.temperature, recipe.baseline.teacher_lr) == (100, 4.0, 1e-4)
        if recipe.method != "mst":
            options_of(method_class(recipe.method), recipe.baseline.options)


def method_class(name: str) -> type[Baseline]:
    (found,) = [x for x in vars(import_module(f"mstdistill.methods.{name}")).values()
                if isinstance(x, type) and issubclass(x, Baseline) and x is not Baseline]  # fmt: skip
    return found


def test_the_page_lists_every_option_and_its_commands_are_valid() -> None:
    page = (ROOT / "docs" / "baselines.md").read_text()
    for name in BASELINES:
        method = method_class(name)
        assert method.name == name
        rows = re.findall(rf"^\| `{name}` \| (.*) \|$", page, re.MULTILINE)
        options = re.sub(r"\([^)]*\)", "", rows[1]) if len(rows) > 1 else ""
        assert sorted(re.findall(r"`(\w+)`", options)) == sorted(method.Options.model_fields), name
    commands = re.findall(r"^    mstdistill train (.*)$", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        recipe, *words = shlex.split(command)
        presets = [word for word in words if word in PRESETS]
        found = load(recipe, [word for word in words if "=" in word], presets)
        options_of(method_class(found.method), found.baseline.options)


@pytest.mark.parametrize(("change", "words"), [
    ({"method": "rdk"}, "unknown method 'rdk'; did you mean rkd"),
    ({"baseline": {"teacher": "crossmodl"}}, "baseline.teacher='crossmodl' is unknown; did you mean crossmodal"),
    ({"baseline": {"teachr": "both"}}, "unknown key 'baseline.teachr'; did you mean teacher"),
    ({"baseline": {"options": {"angel": 1}}}, "method rkd has no option 'angel'; did you mean angle"),
    ({"baseline": {"options": {"angle": -1}}}, "baseline.options.angle=-1: input should be greater than or equal to 0"),
    ({"method": "kd", "baseline": {"options": {"angle": 1}}}, "method kd has no option 'angle'; known: none"),
    ({"baseline": {"student_taps": ["fc9"]}}, "student has no tap 'fc9'; did you mean"),
    ({"baseline": {"teacher_taps": ["fc1", "fc2"]}}, "baseline.teacher_taps: method rkd takes 1, 2 given"),
    ({"method": "fitnets", "baseline": {"student_taps": ["fc1"]}}, "1 of the student and 2 of the teacher given"),
    ({"run": {"stop_after": "specialise"}}, "run.stop_after=specialise: method rkd has no such stage"),
])  # fmt: skip
def test_mistakes_are_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run(tmp_path, count=32, **settings(**{"method": "rkd", **change}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_two_teachers_of_a_kind_need_a_name(tmp_path: Path) -> None:
    from .conftest import make_split

    student, teachers = networks()
    teachers.append(Teacher("third", MLP(5, 12, 8, 3), ("m2",)))
    with pytest.raises(ConfigError, match=r"baseline\.teacher=crossmodal: other, third are; give a name"):
        distill(student, teachers, make_split(32), make_split(16), "m1", out=tmp_path, quiet=True,
                settings=merged(SETTINGS, settings("kd", baseline={"teacher": "crossmodal"})))  # fmt: skip


def test_methods_are_found_by_name() -> None:
    assert all(callable(find_method(name)) for name in BASELINES)


def main() -> None:
    train_wide(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
