"""Self-training in rounds: what teaches, who learns, and that it goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mstdistill import config
from mstdistill.certainty import log_weights
from mstdistill.errors import ConfigError
from mstdistill.experiment import Experiment
from mstdistill.stages import cotrain
from mstdistill.stages.rounds import Round, latest
from mstdistill.state import load_state
from tests import toy
from tests.conftest import make_split

SOME: dict[str, Any] = {
    "data": {"labelled": 0.3}, "cotrain": {"agreement": 0.0, "epochs": 3}, "mask": {"enabled": False},
    "rounds": {"count": 2, "epochs": 2, "lr": 0.01}, "routing": {"rule": "product"}, "alone": {"enabled": False},
}  # fmt: skip


def result(folder: Path) -> bytes:
    return (folder / "result.safetensors").read_bytes()


@pytest.mark.parametrize("anew", [False, True])
def test_a_run_with_rounds_goes_on_to_the_same_bytes(tmp_path: Path, anew: bool) -> None:
    settings = toy.merged(SOME, {"rounds": {"anew": anew}})
    toy.run(tmp_path / "whole", **settings)
    whole = {path.parent.name: path.read_bytes() for path in (tmp_path / "whole").glob("*/result.safetensors")}
    assert {"cotrain", "round-1", "round-2", "distill"} <= whole.keys()
    assert whole["round-1"] != whole["round-2"]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("round-2", "distill", "cache"):  # as a run that ended within the second round
        shutil.rmtree(tmp_path / "again" / name)
    toy.run(tmp_path / "again", **settings)
    assert {name: result(tmp_path / "again" / name) for name in whole} == whole


def test_soft_labels_are_the_calibrated_mixture_of_all_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Experiment, torch.Tensor, torch.Tensor]] = []

    class Watched(Round):
        def __init__(self, experiment: Experiment, number: int, first: Any) -> None:
            super().__init__(experiment, number, first)
            if number == 1:
                batch = experiment.feeds.loader("train", self.views).first(20)
                self.module.eval()
                with torch.no_grad():
                    each = torch.stack(self.module(batch.inputs), dim=1)
                at = torch.tensor(experiment.temperatures(lambda b: each_of(self, b), self.views, self.names))
                mixed = ((log_weights(each, at, "entropy", 3.0).exp() / at).unsqueeze(2) * each).sum(dim=1)
                seen.append((experiment, mixed, self.labels.gather(batch)[:, 0]))

    def each_of(stage: Round, batch: Any) -> torch.Tensor:
        return torch.stack(stage.module(batch.inputs), dim=1)

    monkeypatch.setattr("mstdistill.stages.rounds.Round", Watched)
    toy.run(tmp_path / "run", **toy.merged(SOME, {"rounds": {"rule": "entropy", "sharpness": 3.0}}))
    experiment, mixed, found = seen[0]
    torch.testing.assert_close(found, mixed)
    last = latest(experiment)
    assert last is not None
    assert last.state.keys() == load_file(tmp_path / "run" / "cotrain" / "result.safetensors").keys()
    # the networks that distil are the last round's
    cohort = cotrain.Cohort(experiment.teachers, experiment.student, experiment.target)
    load_state(cohort, last.state)


def test_frozen_teachers_take_part_and_stay(tmp_path: Path) -> None:
    student, teachers = toy.networks()
    teachers[1].frozen = True
    before = {k: v.clone() for k, v in teachers[1].module.state_dict().items()}
    from mstdistill import distill

    distill(student, teachers, make_split(60, seed=1), make_split(30, seed=2), "m1", out=tmp_path / "run", quiet=True,
            settings=toy.merged(toy.SETTINGS, SOME))  # fmt: skip
    after = teachers[1].module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rounds_count_as_the_students_epochs_and_bind_only_where_there_are_some() -> None:
    plain = config.load("av-digits")
    assert "rounds" not in plain.binding()
    assert plain.student_epochs == plain.cotrain.epochs + plain.distill.epochs
    some = config.load("av-digits", ["rounds.count=2", "rounds.epochs=7"])
    assert some.binding()["rounds"]["count"] == 2
    assert some.student_epochs == plain.student_epochs + 14


def test_random_data_have_no_soft_labels(tmp_path: Path) -> None:
    split = make_split(60, seed=1)
    split.deterministic = False
    with pytest.raises(ConfigError, match=r"rounds\.count: soft labels are of data that stay the same"):
        toy.run(tmp_path / "run", train=split, **toy.merged(SOME, {"data": {"labelled": None}}))
