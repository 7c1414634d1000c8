"""Training on instances of which some lack a modality: who learns from them, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mstdistill import Teacher, losses
from mstdistill.data.feeding.batch import Batch
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.present import absent, presence, see
from mstdistill.data.split import Split
from mstdistill.errors import ConfigError, DataError
from mstdistill.stages.hiding import hidden
from tests import toy
from tests.conftest import MLP, make_split


def states(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {stage: load_file(folder / stage / "result.safetensors")
            for stage in ("cotrain", "specialise", "distill", "alone") if (folder / stage).exists()}  # fmt: skip


def test_what_stands_where_nothing_is_changes_nothing(tmp_path: Path) -> None:
    """Every loss and figure leaves out what a network can't see: other numbers there give the same bytes."""
    for fill in (0.0, 3.0):
        toy.run(tmp_path / str(fill), train=toy.gappy(fill=fill), validation=toy.gappy(30, 2, fill), routing={"k": 2})
    first, second = (states(tmp_path / fill) for fill in ("0.0", "3.0"))
    for stage, weights in first.items():
        assert all(torch.equal(weights[name], second[stage][name]) for name in weights), stage
    summaries = [json.loads((tmp_path / fill / "summary.json").read_text()) for fill in ("0.0", "3.0")]
    assert summaries[0]["networks"] == summaries[1]["networks"]
    assert summaries[0]["present"] == {"instances": 78, "have": {"m2": 51}, "left_out": {"train": 2, "validation": 2}}
    assert json.loads((tmp_path / "0.0" / "left_out.json").read_text())["train"] == ["instance 4", "instance 7"]


@pytest.mark.parametrize(
    "rule", ["topk-mean", "topk-weighted", "soft", "random", "fixed", "entropy", "agreement", "product"]
)
@pytest.mark.parametrize("cache", ["always", "never"])
def test_rules_leave_out_who_cant_see(rule: str, cache: str, tmp_path: Path) -> None:
    found = toy.run(tmp_path, train=toy.gappy(), validation=toy.gappy(30, 2), alone={"enabled": False}, distill={
        "epochs": 1, "cache": {"mode": cache}}, cotrain={"epochs": 1}, specialise={"epochs": 1},
        routing={"rule": rule, "k": 2, "signal": "task"})  # fmt: skip
    assert np.isfinite(found.summary["networks"][-1]["validation"]["loss"])
    history = json.loads((tmp_path / "distill" / "result.json").read_text())["history"]
    assert all(np.isfinite(value) for name, value in history[-1].items() if isinstance(value, float))


def test_rounds_of_self_training_leave_out_who_cant_see(tmp_path: Path) -> None:
    for fill in (0.0, 3.0):
        toy.run(tmp_path / str(fill), train=toy.gappy(fill=fill), validation=toy.gappy(30, 2, fill),
                rounds={"count": 1, "rule": "agreement"}, alone={"enabled": False})  # fmt: skip
    first, second = (load_file(tmp_path / fill / "round-1" / "result.safetensors") for fill in ("0.0", "3.0"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_an_instance_that_no_teacher_sees_has_its_task_loss_alone(tmp_path: Path) -> None:
    found = toy.run(tmp_path, 12, train=toy.Gappy(make_split(12, seed=1), {"m2": list(range(1, 12))}), batch_size=4)
    assert np.isfinite(found.summary["networks"][-1]["validation"]["loss"])


def test_data_sets_in_python_may_lack_modalities(tmp_path: Path) -> None:
    whole = make_split(60, seed=1)

    def rows(split: Split, lacks: Any) -> list[dict[str, Any]]:
        found = []
        for i in range(len(split)):
            inputs, label = split.fetch(np.array([i]), ["m1", "m2"])
            row: dict[str, Any] = {name: x[0] for name, x in inputs.items()} | {"label": int(label)}
            if i % 4 == 0:
                row["m2"] = None
            if i % 4 == 1 and lacks == "no key":
                del row["m2"]
            if i == 6:
                row["m1"] = None
            found.append(row)
        return found

    found = toy.run(tmp_path / "allowed", train=rows(whole, "no key"), data={"missing": "allow"})
    assert found.summary["present"] == {"instances": 59, "have": {"m2": 29}, "left_out": {"train": 1}}
    with pytest.raises(DataError, match=r"train\[\d+\]: 'm2' is missing; to learn .*: data.missing=allow"):
        toy.run(tmp_path / "refused", train=rows(whole, "")[1:])
    nobody = [{**row, "m2": None} for row in rows(whole, "")]
    with pytest.raises(DataError, match="train: no item has modality 'm2'"):
        toy.run(tmp_path / "nobody", train=nobody, data={"missing": "allow"})


def test_where_nothing_is_missing_all_is_as_before(tmp_path: Path) -> None:
    toy.run(tmp_path / "plain")
    toy.run(tmp_path / "allowed", data={"missing": "allow"})
    plain, allowed = states(tmp_path / "plain"), states(tmp_path / "allowed")
    assert all(torch.equal(x, allowed[stage][name]) for stage, found in plain.items() for name, x in found.items())


@pytest.mark.parametrize("method", ["kd", "average", "dkd", "ofa", "alone"])
def test_baselines_learn_from_what_their_teachers_see(method: str, tmp_path: Path) -> None:
    for fill in (0.0, 3.0):
        found = toy.run(tmp_path / str(fill), train=toy.gappy(fill=fill), validation=toy.gappy(30, 2, fill),
                        method=method, alone={"enabled": False}, distill={"epochs": 1},
                        baseline={"teacher_epochs": 1})  # fmt: skip
        assert np.isfinite(found.summary["networks"][-1]["validation"]["loss"])
    first, second = (states(tmp_path / fill)["distill"] for fill in ("0.0", "3.0"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("method", ["rkd", "crd", "dist", "mlld", "fitnets", "c2kd", "mgdfr"])
def test_baselines_that_compare_instances_say_so(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"method {method} needs a teacher that sees every instance, and 'both'"):
        toy.run(tmp_path, train=toy.gappy(), method=method, alone={"enabled": False})


def test_a_modality_that_nobody_has_is_refused(tmp_path: Path) -> None:
    every = list(range(80))
    with pytest.raises(DataError, match="custom train: no instance has m1 and m2, which teacher 'both' sees"):
        toy.run(tmp_path / "m2", train=toy.Gappy(make_split(80, seed=1), {"m2": every}))
    with pytest.raises(DataError, match="custom train: no instance has 'm1', which the student sees"):
        toy.run(tmp_path / "m1", train=toy.Gappy(make_split(80, seed=1), {"m1": every}))


def test_batches_say_what_is_there_whatever_is_read() -> None:
    split = toy.gappy(40)
    for batch in Loader(split, ["m1"], 7, shuffle=True, num_classes=3).epoch(1):
        there = batch.to(torch.device("cpu")).present
        assert torch.equal(there["m2"], torch.from_numpy(split.present["m2"][batch.index.numpy()]))
    assert presence(make_split(4, seed=1)) == {}
    present = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True, True, False])}
    for names, some, wanted in (("ab", False, [1, 0, 0]), ("ab", True, [1, 1, 0]), ("a", False, [1, 0, 0]),
                                ("c", False, None), ("ac", True, None), ("ac", False, [1, 0, 0])):  # fmt: skip
        seen = see(present, tuple(names), some)
        assert (seen is None and wanted is None) or seen.int().tolist() == wanted  # type: ignore[union-attr]


def test_losses_of_what_isnt_seen_are_zero() -> None:
    batch = Batch({}, torch.tensor([0, 1, 2]), torch.arange(3), torch.ones(3), 3.0)
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    seen = torch.tensor([True, False, True])
    alone = Batch({}, batch.label[[0, 2]], torch.arange(2), torch.ones(2), 3.0)
    assert torch.allclose(losses.kd(a, b, batch, 2.0, seen), losses.kd(a[[0, 2]], b[[0, 2]], alone, 2.0))
    assert torch.allclose(losses.task(a, batch, None, seen), losses.task(a[[0, 2]], alone))
    assert losses.both(None, None) is None
    assert torch.equal(losses.both(seen, ~seen), torch.zeros(3, dtype=torch.bool))  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "wanted"), [
    (None, True), ("", True), ("  ", True), ("x", False), ([], True), ([0.0], False), (0, False), (b"", True),
    ({"bytes": None, "path": None}, True), ({"bytes": b"x", "path": None}, False), ({"array": None}, True),
    ({"bytes": None, "path": "/no/such/file.wav"}, True), ({"bytes": None, "path": __file__}, False),
    ({"bytes": None, "path": "hf://datasets/x/y.wav"}, False), (np.zeros(0), True), (np.zeros(2), False),
])  # fmt: skip
def test_what_counts_as_missing(value: Any, wanted: bool) -> None:
    assert absent(value) is wanted


def test_a_teacher_may_miss_a_modality(tmp_path: Path) -> None:
    """It sees every instance that has one of its modalities, and trains with some hidden; the same at each start."""

    def run(name: str, dropout: float) -> dict[str, Any]:
        return toy.run(tmp_path / name, validation=toy.gappy(30, 2), lacking=True, hiding=dropout,
                       alone={"enabled": False}).summary  # fmt: skip

    first, again, without = run("a", 0.4), run("b", 0.4), run("c", 0.0)
    assert first["networks"] == again["networks"]
    assert first["networks"] != without["networks"]
    share = first["routing_share"]
    assert share["both.fc1"] + share["both.fc2"] > 1 / 3  # a third of the instances has no other


def test_hiding_follows_from_seed_epoch_and_instance() -> None:
    teacher = Teacher("both", MLP(11, 4, 4, 3), ("m1", "m2"), missing="zero", modality_dropout=0.5)
    present = {"m2": torch.tensor([True, False] * 200)}
    inputs = {"m1": torch.ones(400, 6), "m2": torch.ones(400, 5), "other": torch.ones(400, 2)}
    batch = Batch(inputs, torch.zeros(400), torch.arange(400), torch.ones(400), 400.0, present=present)
    found = hidden(teacher, batch, 3, 1)
    kept = torch.stack([found["m1"][:, 0] > 0, found["m2"][:, 0] > 0], dim=1)
    assert kept[1::2, 0].all()  # what is left stays
    assert kept.any(dim=1).all()
    assert 0.6 < float(kept[::2].float().mean()) < 0.75  # half of the time hidden, a quarter less where both would be
    assert torch.equal(found["other"], inputs["other"])
    half = Batch({n: x[:200] for n, x in inputs.items()}, torch.zeros(200), torch.arange(200), torch.ones(200), 400.0,
                 present={"m2": present["m2"][:200]})  # fmt: skip
    part = hidden(teacher, half, 3, 1)
    assert torch.equal(part["m1"], found["m1"][:200])
    assert not torch.equal(hidden(teacher, batch, 3, 2)["m1"], found["m1"])
    with pytest.raises(ConfigError, match="goes with missing zero"):
        Teacher("both", MLP(11, 4, 4, 3), ("m1", "m2"), modality_dropout=0.5)
