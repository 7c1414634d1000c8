"""Training on instances of which some have no label: which count where, how they are mixed, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mstdistill import losses
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.feeding.mixing import mixed_order
from mstdistill.data.labelled import PartlyLabelled, hidden, partly_labelled
from mstdistill.errors import ConfigError, DataError
from tests import toy
from tests.conftest import make_split


@given(
    count=st.integers(1, 90), share=st.floats(0.01, 1.0), step=st.integers(1, 40), labelled=st.floats(0.0, 1.0),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_every_step_has_its_share_and_everybody_has_a_turn(
    count: int, share: float, step: int, labelled: float, seed: int
) -> None:
    known = np.zeros(count, dtype=bool)
    known[: max(1, round(labelled * count))] = True
    seen = np.zeros(count, dtype=int)
    for epoch in range(4):
        order = mixed_order(known, share, step, seed, epoch)
        assert np.array_equal(order, mixed_order(known, share, step, seed, epoch))
        assert len(order) == count
        np.add.at(seen, order, 1)
        for start in range(0, count, step):
            part = known[order[start : start + step]]
            wanted = len(part) if known.all() else min(len(part), max(1, round(share * len(part))))
            assert part.sum() == wanted
            for half in (part[: len(part) // 2], part[len(part) // 2 :]):  # as two processes would take them
                assert abs(half.sum() - wanted * len(half) / len(part)) <= 1
    for kind in (known, ~known):
        if kind.any():  # one after the other, over the epochs' ends
            assert np.ptp(seen[kind]) <= 1


def test_smaller_shares_are_parts_of_larger_ones_and_every_class_has_one() -> None:
    label = np.repeat(np.arange(4), [50, 20, 3, 1])
    label[:5] = -1
    shares = [hidden(label, share, 7) for share in (0.02, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(shares):
        assert not (small & ~large).any()
    assert set(label[shares[0]]) == {0, 1, 2, 3}
    assert [int(kept.sum()) for kept in shares] == [4, 8, 35, 69]
    assert not np.array_equal(shares[1], hidden(label, 0.1, 8))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_task_counts_labelled_instances_of_the_step_alone(accumulate: int) -> None:
    split = make_split(40, seed=1)
    known = np.random.default_rng(0).random(40) < 0.2
    loader = Loader(PartlyLabelled(split, known), ["m1"], 5, shuffle=True, accumulate=accumulate, num_classes=3)
    weight = torch.randn(6, 3, dtype=torch.float64)
    total, rows = torch.zeros((), dtype=torch.float64), []
    for batch in loader.epoch(1):
        total = total + losses.task(batch.inputs["m1"].double() @ weight, batch)
        rows.append(batch.index)
        assert torch.equal(batch.label != -1, torch.from_numpy(known[batch.index.numpy()]))
        if batch.closes_step:
            index = torch.cat(rows).numpy()
            inputs, label = split.fetch(index[known[index]], ["m1"])
            wanted = torch.nn.functional.cross_entropy(inputs["m1"].double() @ weight, label) if len(label) else 0.0
            assert float(total) == pytest.approx(float(wanted), rel=1e-12)
            total, rows = torch.zeros((), dtype=torch.float64), []


class Sensors(torch.utils.data.Dataset[dict[str, Any]]):
    """Toy instances of which every third has a label; what stands for none differs."""

    def __init__(self, none: Any, count: int = 60) -> None:
        self.split, self.none = make_split(count, seed=1), none

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        inputs, label = self.split.fetch(np.array([i]), ["m1", "m2"])
        return {**{name: x[0] for name, x in inputs.items()}, "label": int(label) if i % 3 == 0 else self.none}


@pytest.mark.parametrize("none", [None, -1, float("nan")])
def test_data_sets_in_python_may_lack_labels(none: Any, tmp_path: Path) -> None:
    learned = toy.run(tmp_path / "learned", train=Sensors(none), data={"unlabelled": "learn", "labelled_share": 0.5})
    assert learned.summary["networks"][-1]["name"] == "distilled student"
    assert learned.summary["labelled"] == {"instances": 60, "labelled": 20}
    with pytest.raises(DataError, match=r"no .label.|no label|out of range|no class"):
        toy.run(tmp_path / "left", train=Sensors(none))


def test_hidden_labels_change_what_is_learned_and_nothing_else(tmp_path: Path) -> None:
    """Who distils on all instances sees labels of a few; those that hide none are as before, to the byte."""
    plain, all_of_them = toy.run(tmp_path / "plain"), toy.run(tmp_path / "all", data={"labelled": 1.0})
    assert "labelled" not in plain.summary
    assert "labelled" not in all_of_them.summary
    for stage in ("cotrain", "specialise", "distill", "alone"):
        states = [load_file(tmp_path / run / stage / "result.safetensors") for run in ("plain", "all")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    toy.run(tmp_path / "few", data={"labelled": 0.1})
    few = json.loads((tmp_path / "few" / "summary.json").read_text())
    assert few["labelled"]["instances"] == 80
    assert 3 <= few["labelled"]["labelled"] <= 9


@pytest.mark.parametrize(
    "method", ["kd", "average", "rkd", "mlld", "dist", "dkd", "ofa", "c2kd", "fitnets", "mgdfr", "pseudo", "alone"]
)
def test_methods_learn_from_instances_without_a_label(method: str, tmp_path: Path) -> None:
    found = toy.run(tmp_path, method=method, alone={"enabled": False}, data={"labelled": 0.2}, distill={"epochs": 1},
                    baseline={"teacher_epochs": 1})  # fmt: skip
    assert np.isfinite(found.summary["networks"][-1]["validation"]["loss"])


def test_what_cant_be_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crd can't learn from instances without a label: it draws negatives"):
        toy.run(tmp_path / "crd", method="crd", data={"labelled": 0.2})
    for wrong in (0, -0.5, 1.5):
        with pytest.raises(ConfigError, match=r"data\.labelled"):
            toy.run(tmp_path / "share", data={"labelled": wrong})
    split = make_split(12, seed=1)
    with pytest.raises(DataError, match="toy: no instance has a label"):
        partly_labelled(PartlyLabelled(split, np.zeros(12, dtype=bool)), None, 0, 3, "toy")
    with pytest.raises(DataError, match=r"toy: label \d of instance \d+ is out of range: the task has 1 classes"):
        partly_labelled(split, 0.5, 0, 1, "toy")
    _, line = partly_labelled(split, 0.5, 0, 5, "toy")
    assert line.endswith("of 12 instances are labelled; warning: none of class 3, 4: the student can learn it from its "
                         "teachers at best")  # fmt: skip


def test_settings_for_partly_labelled_data_take_the_others_place_there_alone(tmp_path: Path) -> None:
    partly = {"cotrain": {"agreement": 0.0}, "mask": {"enabled": False}, "rounds": {"count": 1}, "temperature": 2.0,
              "routing": {"rule": "product"}}  # fmt: skip
    plain, told = toy.run(tmp_path / "plain"), toy.run(tmp_path / "told", partly=partly)
    assert plain.summary["networks"] == told.summary["networks"]
    few = toy.run(tmp_path / "few", partly=partly, data={"labelled": 0.3})
    same = toy.run(tmp_path / "same", **partly, data={"labelled": 0.3})  # type: ignore[arg-type]
    assert "round-1" in few.summary["stages"]
    assert few.summary["networks"] == same.summary["networks"]


@pytest.mark.parametrize(("partly", "words"), [
    ({"data": {"group": 3}}, r"partly\.data: settings of partly labelled data are of temperature, mask"),
    ({"routing": {"rule": "nobody"}}, r"nobody"),
    ({"rounds": {"number": 3}}, r"number"),
])  # fmt: skip
def test_wrong_settings_for_partly_labelled_data_are_found_at_once(
    tmp_path: Path, partly: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        toy.run(tmp_path, partly=partly)
