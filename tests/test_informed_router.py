"""A router that reads teachers: what it meets, which labels its teachers never saw, and that runs go on exactly."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mstdistill import Teacher, distill
from mstdistill.engine import loop
from mstdistill.informed_router import InformedDenseRouter, InformedRouter, probabilities, router_for
from mstdistill.report import budget
from mstdistill.routing import DenseRouter, Router
from mstdistill.stages.cotrain import Cotrain
from mstdistill.stages.distill import Distill
from mstdistill.weights import part
from tests import toy

from .conftest import MLP, Command, TensorSplit, make_split, refused
from .several import Several
from .test_shapes import Dense, dense_split
from .test_speed_paths import Again, curve

FOLDED: dict[str, Any] = {
    "data": {"labelled": 0.5}, "alone": {"enabled": False}, "distill": {"epochs": 2}, "specialise": {"epochs": 1},
    "routing": {"rule": "soft", "signal": "task", "reads": "teachers", "folds": 3},
}  # fmt: skip
UNFOLDED = toy.merged(FOLDED, {"routing": {"folds": 0}})


def results(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/result.safetensors")}


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """By stage, the positions whose label the co-training and its repetitions don't know."""
    seen: dict[str, set[int]] = defaultdict(set)
    learn = Cotrain.losses

    def losses(self: Cotrain, module: Any, batch: Any, epoch: int) -> Any:
        unknown = (batch.label < 1 if self.experiment.dense else batch.label < 0).reshape(len(batch.label), -1)
        seen[self.name] |= set(batch.index[unknown.all(dim=1)].tolist())
        return learn(self, module, batch, epoch)

    monkeypatch.setattr(Cotrain, "losses", losses)
    return seen


def first_step(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Filled with the first step of stage 3: stage, weights, batch, losses and the router's gradients."""
    found: list[dict[str, Any]] = []
    learn = Distill.losses

    def losses(self: Distill, module: Any, batch: Any, epoch: int) -> Any:
        weights = {name: x.detach().clone() for name, x in self.module.state_dict().items()}
        parts = learn(self, module, batch, epoch)
        if not found:
            named = dict(self.module.router.named_parameters())
            slopes = torch.autograd.grad(parts["loss"], list(named.values()), retain_graph=True)
            found.append({"stage": self, "weights": weights, "batch": batch, "parts": parts,
                          "slopes": dict(zip(named, slopes, strict=True))})  # fmt: skip
        return parts

    monkeypatch.setattr(Distill, "losses", losses)
    return found


def loaded(state: dict[str, Tensor], name: str, width: int) -> MLP:
    network = MLP(width, 12, 8, 3).double()
    network.load_state_dict(part(state, name))
    return network


def test_a_step_is_what_the_formulas_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: dict[str, set[int]]
) -> None:
    """Float64, the whole loss and the router's gradient: of a labelled row the router meets, and is judged by, the
    networks whose co-training didn't know its label; what is distilled are the final teachers."""
    found = first_step(monkeypatch)
    student, teachers = toy.networks()
    for network in (student, *(teacher.module for teacher in teachers)):
        network.double()
    settings = toy.merged(FOLDED, {"mask": {"enabled": False}, "batch_size": 24})
    data = make_split(60, seed=1, dtype=torch.float64)
    distill(student, teachers, data, make_split(30, seed=2, dtype=torch.float64), "m1", out=tmp_path, quiet=True,
            settings=toy.merged(toy.SETTINGS, settings))  # fmt: skip
    (step,) = found
    rows = step["batch"].index.numpy()
    inputs, label = data.fetch(rows, ["m1", "m2"])
    views = [torch.cat([inputs["m1"], inputs["m2"]], dim=1), inputs["m2"]]

    def said(stage: str) -> Tensor:
        state = load_file(tmp_path / stage / "result.safetensors")
        networks = [loaded(state, "teachers.0", 11), loaded(state, "teachers.1", 5)]
        return torch.stack([network(x) for network, x in zip(networks, views, strict=True)], dim=1).detach()

    final = said("cotrain")
    honest, known = final.clone(), torch.tensor([row not in hidden["cotrain"] for row in rows])
    for fold in (1, 2, 3):
        own = torch.tensor([row in hidden[f"fold-{fold}"] - hidden["cotrain"] for row in rows])
        honest[own] = said(f"fold-{fold}")[own]
    assert 0 < known.sum() < len(rows)
    assert (honest[known] - final[known]).abs().max() > 0.01

    weights = {name: x.requires_grad_() for name, x in step["weights"].items()}
    z = torch.func.functional_call(MLP(6, 12, 8, 3).double(), part(weights, "student"), (inputs["m1"],))
    w = part(weights, "router")
    read = torch.cat([z, honest.softmax(dim=2).flatten(1)], dim=1)
    scores = torch.relu(read @ w["fc1.weight"].T + w["fc1.bias"]) @ w["fc2.weight"].T + w["fc2.bias"]
    r = scores.softmax(dim=1)
    p = ((r.detach().unsqueeze(2) * final).sum(dim=1) / 4).softmax(dim=1)
    kd = 16 * (p * (p.log() - (z / 4).log_softmax(dim=1))).sum(dim=1).mean()
    right = honest.softmax(dim=2)[torch.arange(len(rows)), :, label]
    task = -z.log_softmax(dim=1)[torch.arange(len(rows)), label][known].mean()
    balance = (0.5 * (np.log(0.5) - r.mean(dim=0).log())).sum() / 2
    router = -(r * right).sum(dim=1).log()[known].mean()
    wanted = {"kd": kd, "task": task, "balance": balance, "router": router, "loss": task + kd + balance + router}
    for name, value in wanted.items():
        torch.testing.assert_close(step["parts"][name].double(), value, rtol=1e-6, atol=1e-8, msg=name)
    for name, slope in step["slopes"].items():
        torch.testing.assert_close(slope, torch.autograd.grad(wanted["loss"], w[name], retain_graph=True)[0],
                                   rtol=1e-5, atol=1e-8)  # fmt: skip


@pytest.mark.parametrize("kind", ["classes", "several", "maps"])
def test_each_label_is_hidden_once_and_classes_go_evenly(
    kind: str, tmp_path: Path, hidden: dict[str, set[int]]
) -> None:
    if kind == "maps":  # whole maps take the class that doesn't count
        data: Any = dense_split(22, 1)
        data.label[:4] = 0
        teachers = [Teacher("both", Dense(8), ("rgb", "depth"), ("enc",)), Teacher("depth", Dense(4), ("depth",))]
        distill(Dense(4), teachers, data, dense_split(8, 2), "rgb", ignore_index=0, out=tmp_path, quiet=True,
                settings=toy.merged(toy.SETTINGS, toy.merged(FOLDED, {"data": {"labelled": None}})))  # fmt: skip
    elif kind == "several":
        data = Several(80, 1, unknown=0.2)
        toy.run(tmp_path, several=True, **FOLDED)
    else:
        data = make_split(80, seed=1)
        toy.run(tmp_path, **FOLDED)
    never = hidden.pop("cotrain")
    labelled = set(range(len(data))) - never
    folds = [rows - never for rows in hidden.values()]
    assert hidden.keys() == {"fold-1", "fold-2", "fold-3"}
    assert all(never <= rows for rows in hidden.values())
    assert sum(map(len, folds)) == len(labelled)
    assert set().union(*folds) == labelled
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for number in range(3) if kind == "classes" else ():
        counts = [sum(int(data.label[row]) == number for row in rows) for rows in folds]
        assert max(counts) - min(counts) <= 1


def test_the_runs_own_training_stays_as_it_is(tmp_path: Path) -> None:
    """Networks with dropout, so that their random numbers count; rounds begin with the first weights."""
    settings: dict[str, Any] = {"dropout": 0.3, "rounds": {"count": 1, "epochs": 1, "anew": True}}
    toy.run(tmp_path / "with", **toy.merged(FOLDED, settings))
    toy.run(tmp_path / "without", **toy.merged(FOLDED, {**settings, "routing": {"reads": "student", "folds": 0}}))
    found, plain = results(tmp_path / "with"), results(tmp_path / "without")
    assert found.keys() - plain.keys() == {"fold-1", "fold-2", "fold-3"}
    for stage in ("cotrain", "round-1", "specialise"):
        assert found[stage] == plain[stage]
    assert found["distill"] != plain["distill"]


@pytest.mark.parametrize("at", [("fold-2", 7), ("distill", 3)])
def test_a_killed_run_goes_on_to_the_same_bytes(at: tuple[str, int], tmp_path: Path) -> None:
    settings = toy.merged(FOLDED, {"dropout": 0.3, "rounds": {"count": 1, "epochs": 1}})
    toy.run(tmp_path / "whole", **settings)

    def die(stage: str, step: int, parts: Any) -> None:
        if (stage, step) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path / "again", observe=die, **settings)
    assert "distill" not in results(tmp_path / "again")
    toy.run(tmp_path / "again", **settings)
    assert results(tmp_path / "again") == results(tmp_path / "whole")


@pytest.mark.parametrize(("rule", "extra"), [
    ({"rule": "topk-mean", "signal": "none", "k": 2}, {"distill": {"cache": {"mode": "never"}}}),
    ({"rule": "topk-weighted", "signal": "both", "k": 2}, {"lacking": True, "hiding": 0.4}),
    ({"rule": "soft", "signal": "distill"}, {"several": True, "lacking": True}),
    ({"rule": "soft"}, {"several": True, "data": {"labelled": 0.4}, "distill": {"cache": {"mode": "never"}}}),
    ({"rule": "soft"}, {"augment": {"modalities": {"m1": [{"noise": 0.5}]}, "mixup": 0.5}}),
    ({"rule": "soft"}, {"augment": {"modalities": {"m1": [{"noise": 0.5}]}, "mixup": 0.5, "teachers": "same"}}),
    ({"rule": "topk-mean"}, {"augment": {"modalities": {"m1": [{"noise": 0.5}]}, "teachers": "views", "views": 2}}),
    ({"rule": "topk-mean", "folds": 0}, {"lacking": True, "mask": {"enabled": False}, "accumulate": 2}),
])  # fmt: skip
def test_it_goes_with_all_that_a_run_can_be(rule: dict[str, Any], extra: dict[str, Any], tmp_path: Path) -> None:
    settings = toy.merged(FOLDED, {"routing": {"folds": 2, **rule}, **extra})
    shares = toy.run(tmp_path, count=60, **settings).summary["routing_share"]
    assert sum(shares.values()) == pytest.approx(1.0)
    record = json.loads((tmp_path / "distill" / "result.json").read_text())["history"][-1]
    assert np.isfinite(record["train/loss"])


def test_live_teachers_say_what_the_table_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same first step, mixed instances too: the router's input, and what it is judged by."""
    kept = []
    for mode in ("always", "never"):
        with monkeypatch.context() as patch:
            found = first_step(patch)
            toy.run(
                tmp_path / mode, **toy.merged(FOLDED, {"distill": {"cache": {"mode": mode}}, "augment": {"mixup": 1}})
            )
        (step,) = found
        kept.append((step["stage"].unmasked.logits(step["batch"]), step["parts"]["router"].detach()))
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-5, atol=1e-6)


def test_what_stands_where_nothing_is_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a weight nor the page; a teacher that can't see an instance says zeros to the router and has no share."""
    monkeypatch.setattr(budget.Budget, "affords", lambda self, seconds: True)
    kept = []
    for fill in (0.0, 3.0):
        given = {"train": toy.gappy(fill=fill), "validation": toy.gappy(30, 2, fill), "test": toy.gappy(30, 3, fill)}
        with monkeypatch.context() as patch:
            found = first_step(patch)
            toy.run(tmp_path / str(fill), **toy.merged(FOLDED, {"run": {"page": True}}), **given)
        page = json.loads((tmp_path / str(fill) / "report.json").read_text())
        kept.append((results(tmp_path / str(fill)), page["routing"]))
        assert page["left_out"] == []
    assert kept[0] == kept[1]
    assert sum(kept[0][1]["mean"]) == pytest.approx(1.0)
    stage, batch = found[0]["stage"], found[0]["batch"]
    blind = ~batch.present["m2"]
    assert blind.any()
    assert (stage.unmasked.read(stage.unmasked.logits(batch), batch)[blind] == 0).all()


def test_recorded_steps_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "recorder_for", lambda device: Again())
    plain, weights = curve(tmp_path / "plain", **FOLDED)
    found, others = curve(tmp_path / "recorded", **FOLDED, run={"cuda_graph": True})
    for (_, _, a), (_, _, b) in zip(plain, found, strict=True):
        assert all(np.allclose(a[name], b[name], rtol=2e-5, atol=1e-6) for name in a)
    assert all(torch.allclose(others[name], wanted, atol=1e-5) for name, wanted in weights.items())


def test_teachers_that_learn_nothing_here_are_met_as_they_are(tmp_path: Path) -> None:
    """A frozen one takes part in each fold and stays; where all are, no fold is run."""
    for frozen, folds in (([1], 3), ([0, 1], 0)):
        student, teachers = toy.networks()
        for number in frozen:
            teachers[number].frozen = True
        before = {name: x.clone() for name, x in teachers[1].module.state_dict().items()}
        out = tmp_path / str(folds)
        distill(student, teachers, make_split(60, seed=1), make_split(30, seed=2), "m1", out=out, quiet=True,
                settings=toy.merged(toy.SETTINGS, FOLDED))  # fmt: skip
        assert all(torch.equal(before[name], x) for name, x in teachers[1].module.state_dict().items())
        assert len(list(out.glob("fold-*/result.json"))) == folds


@pytest.mark.parametrize(("build", "shape"), [(InformedRouter, (5, 4)), (InformedDenseRouter, (5, 4, 6, 7))])
def test_a_router_reads_students_and_teachers(build: Callable[..., Any], shape: Sequence[int]) -> None:
    torch.manual_seed(0)
    router = build(4, 2, 3)
    logits, said = torch.randn(*shape), torch.rand(5, 2, *shape[1:])
    scores = router(logits, said)
    assert scores.shape == (5, 3)
    for number in range(2):  # each of them counts
        other = said.clone()
        other[:, number] = 0
        assert (router(logits, other) - scores).abs().max() > 1e-4
    assert (router(logits + 1, said) - scores).abs().max() > 1e-4


def test_what_reads_the_student_alone_is_as_it_was() -> None:
    for dense, kind in ((False, Router), (True, DenseRouter)):
        torch.manual_seed(3)
        router = router_for("student", dense, 4, 2, 5)
        torch.manual_seed(3)
        plain = kind(4, 5)
        assert type(router) is kind
        assert all(torch.equal(x, plain.state_dict()[name]) for name, x in router.state_dict().items())


def test_probabilities_are_of_the_task_and_zero_of_the_blind() -> None:
    logits, seen = torch.randn(2, 2, 3), torch.tensor([[True, False], [True, True]])
    logits[0, 1] = torch.nan  # whatever it says of nothing
    one, several = (probabilities(logits, seen, kind) for kind in (False, True))
    assert (one[0, 1] == 0).all()
    assert torch.allclose(one[1].sum(dim=1), torch.ones(2))
    assert torch.equal(several[1], logits[1].sigmoid())


def test_impossible_settings_are_one_line(command: Command) -> None:
    cases = {
        "routing.folds=5": "set reads=teachers",
        "routing.reads=teachers routing.folds=1": "folds=1 hides all labels",
        "routing.reads=teachers routing.rule=product": "rule 'product' asks none; take one of",
        "routing.reads=teachers routing.rule=fixed": "rule 'fixed' asks none",
        "partly.routing.reads=teachers partly.routing.rule=margin": "rule 'margin' asks none",
    }
    for words, said in cases.items():
        refused(command("train", "av-digits", *words.split(), "--out", "unused"), said)


def test_more_folds_than_labels_are_refused_and_rare_classes_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    words = ("train", "av-digits", "data.limit=200", "data.labelled=0.1", "cotrain.epochs=0", "routing.reads=teachers")
    refused(
        command(*words, "routing.folds=60", "--out", tmp_path / "run"), "routing.folds=60: each fold hides at least"
    )
    data = make_split(60, seed=1)
    first = int((data.label == 2).nonzero()[0])
    label = torch.where((data.label == 2) & (torch.arange(60) != first), 0, data.label)
    toy.run(tmp_path / "rare", train=TensorSplit(data.inputs, label, "rare"), quiet=False,
            **toy.merged(FOLDED, {"data": {"labelled": None}}))  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: one fold hides every label of class 2, of which its teachers learn nothing" in said


def test_results_are_taken_up_stage_by_stage(tmp_path: Path) -> None:
    """A fold whose result was lost is trained again from the first weights, the others aren't."""
    toy.run(tmp_path, **FOLDED)
    before = results(tmp_path)
    for name in ("fold-2", "distill", "cache"):
        shutil.rmtree(tmp_path / name)
    seen: set[str] = set()
    toy.run(tmp_path, observe=lambda stage, step, parts: seen.add(stage), **FOLDED)
    assert results(tmp_path) == before
    assert seen == {"fold-2", "distill"}
