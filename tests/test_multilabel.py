"""Tasks of several classes at once: a whole run, figures against scikit-learn, labels of every form, what is refused;
and class weights, smoothing and balanced drawing of tasks of one class."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn import metrics as sk

from mstdistill import Student
from mstdistill.certainty import calibration_losses
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.feeding.mixing import balanced_draw, mixed_order
from mstdistill.data.labelled import PartlyLabelled
from mstdistill.data.split import Subset
from mstdistill.errors import ConfigError, DataError
from mstdistill.metrics import several_metrics_of
from mstdistill.objective import Objective, balanced
from tests import toy
from tests.conftest import MLP, make_split
from tests.several import Several

SEVERAL = {"data": {"multilabel": True}}


def run(out: Path, **settings: Any) -> Any:
    parts = {"train": Several(80, 1, unknown=0.2), "validation": Several(40, 2), "test": Several(40, 3, unknown=0.1)}
    parts |= {name: settings.pop(name) for name in [*parts] if name in settings}
    return toy.run(out, **parts, **toy.merged(SEVERAL, settings))


@pytest.mark.parametrize("method", ["mst", "kd", "average", "fitnets", "rkd", "mgdfr", "alone"])
def test_whole_runs_and_their_figures(method: str, tmp_path: Path) -> None:
    found = run(tmp_path, method=method, distill={"epochs": 12}, baseline={"teacher_epochs": 8})
    student = found.summary["networks"][-1]
    assert student["validation"]["map_macro"] > 0.5  # guessing: 0.4
    split = Several(40, 3, unknown=0.1)
    inputs, label = split.fetch(np.arange(40), ["m1"])
    exported = Student.from_pretrained(tmp_path / "student", module=MLP(6, 12, 8, 3))
    logits = exported(inputs["m1"]).detach()
    assert student["test"]["map_macro"] == pytest.approx(several_metrics_of(logits, label).map_macro)
    known = label >= 0
    loss = F.binary_cross_entropy_with_logits(logits, label.clamp(min=0).float(), reduction="none")[known].mean()
    assert student["test"]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert torch.equal(exported.predict(inputs["m1"]), (logits > 0).long())
    assert "yes or no of its own" in (tmp_path / "student" / "README.md").read_text()
    assert "validation mAP" in (tmp_path / "summary.md").read_text()
    # the weights that are kept are those of the best mean average precision
    facts = json.loads((tmp_path / "distill" / "result.json").read_text())
    assert facts["history"][facts["best_epoch"]]["validation/map_macro"] == max(
        row["validation/map_macro"] for row in facts["history"]
    )


def test_figures_are_scikit_learn_s() -> None:
    draw = np.random.default_rng(0)
    scores, true = draw.standard_normal((60, 5)), draw.integers(0, 2, (60, 5))
    found = several_metrics_of(torch.from_numpy(scores), torch.from_numpy(true))
    said = scores > 0
    assert found.map_macro == pytest.approx(sk.average_precision_score(true, scores, average="macro"))
    assert found.map_weighted == pytest.approx(sk.average_precision_score(true, scores, average="weighted"))
    assert found.f1_micro == pytest.approx(sk.f1_score(true, said, average="micro"))
    assert found.f1_macro == pytest.approx(sk.f1_score(true, said, average="macro"))
    assert found.auroc == pytest.approx(sk.roc_auc_score(true, scores, average="macro"))
    # what isn't known is as if it weren't there; a class that nobody has counts in no mean
    hidden = true.copy()
    hidden[:20, 0], hidden[:, 4] = -1, 0
    scores[:, 4] = -1.0
    found = several_metrics_of(torch.from_numpy(scores), torch.from_numpy(hidden))
    first = sk.average_precision_score(true[20:, 0], scores[20:, 0])
    rest = [sk.average_precision_score(true[:, c], scores[:, c]) for c in (1, 2, 3)]
    assert found.map_macro == pytest.approx(np.mean([first, *rest]))
    assert found.absent == (4,)


@pytest.mark.parametrize("rule", ["soft", "entropy", "margin", "agreement", "product"])
def test_every_rule_routes_several_classes(rule: str, tmp_path: Path) -> None:
    found = run(tmp_path, routing={"rule": rule, "signal": "task"}, train=Several(60, 1, 0.1, bare=0.4),
                data={"unlabelled": "learn", "labelled_share": 0.5}, task_loss={"class_weights": "balanced"},
                distill={"epochs": 1}, alone={"enabled": False}, specialise={"task": 0.5},
                rounds={"count": 1})  # fmt: skip
    assert found.summary["labelled"]["labelled"] < 60
    assert np.isfinite(found.summary["networks"][-1]["test"]["loss"])


def test_the_task_counts_known_entries_alone_and_weighs_classes() -> None:
    split = Several(40, 1, unknown=0.3)
    weights = balanced(split.label, 3)
    for c in range(3):
        yes, no = (split.label[:, c] == 1).sum(), (split.label[:, c] == 0).sum()
        assert float(weights[1, c]) * yes == pytest.approx(float(weights[0, c]) * no)
        assert float(weights[1, c]) * yes + float(weights[0, c]) * no == pytest.approx(yes + no)
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = Objective(several=True, class_weights=weights)
    for batch in Loader(split, ["m1"], 16, shuffle=True, num_classes=3, several=True).epoch(1):
        logits = batch.inputs["m1"].double() @ weight
        known = batch.label >= 0
        rows = F.binary_cross_entropy_with_logits(logits, batch.label.clamp(min=0).double(), reduction="none")
        rows = rows * torch.where(batch.label == 1, weights[1], weights[0])
        assert float(objective.task(logits, batch)) == pytest.approx(float(rows[known].mean()), rel=1e-12)


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize("rule", ["topk-mean", "topk-weighted", "agreement", "product"])
def test_who_cant_see_an_instance_has_no_part_in_it(rule: str, cache: str, tmp_path: Path) -> None:
    """Where modalities are missing other numbers in their place give the same bytes and figures."""
    found = []
    for fill in (0.0, 3.0):
        parts = {name: toy.gappy(count, seed, fill, several=True)
                 for name, count, seed in (("train", 80, 1), ("validation", 40, 2))}  # fmt: skip
        found.append(run(
            tmp_path / str(fill), **parts, test=Several(40, 3), specialise={"epochs": 1, "task": 0.5},
            distill={"epochs": 2, "cache": {"mode": cache}}, rounds={"count": 1, "rule": "agreement"},
            task_loss={"class_weights": "balanced"}, routing={"rule": rule, "k": 2, "signal": "task"},
        ))  # fmt: skip
    for stage in ("cotrain", "round-1", "specialise", "distill"):
        states = [load_file(one.folder / stage / "result.safetensors") for one in found]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), stage
    assert found[0].summary["networks"] == found[1].summary["networks"]
    assert "m2" in found[0].summary["present"]["have"]


@pytest.mark.parametrize("of", ["losses", "logits"])
def test_an_average_is_of_the_teachers_that_see(of: str, tmp_path: Path) -> None:
    for fill in (0.0, 3.0):
        run(tmp_path / str(fill), train=toy.gappy(fill=fill, several=True), method="average", distill={"epochs": 1},
            baseline={"teacher_epochs": 1, "options": {"of": of}}, alone={"enabled": False})  # fmt: skip
    states = [load_file(tmp_path / fill / "distill" / "result.safetensors") for fill in ("0.0", "3.0")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_figures_are_of_what_a_network_sees(tmp_path: Path) -> None:
    """A teacher's over the instances that it can see are as over these alone."""
    split = toy.gappy(60, 2, several=True)
    seen = np.flatnonzero(split.present["m2"] & split.present.get("m1", True))
    networks = []
    for name, validation in (("whole", split), ("part", Subset(split.split, seen))):
        found = run(tmp_path / name, validation=validation, distill={"epochs": 0}, cotrain={"epochs": 0},
                    specialise={"epochs": 0}, alone={"enabled": False})  # fmt: skip
        networks.append({one["name"]: one["validation"] for one in found.summary["networks"]})
    assert networks[0]["teacher both"] == pytest.approx(networks[1]["teacher both"], rel=1e-6)


def test_temperatures_are_of_what_a_teacher_sees() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(40, 2, 3, generator=generator)
    label = torch.randint(-1, 2, (40, 3), generator=generator)
    seen = torch.rand(40, 2, generator=generator) > 0.4
    found = calibration_losses(logits, label, torch.ones(40), seen)
    for m in range(2):
        own = calibration_losses(logits[seen[:, m]][:, m : m + 1], label[seen[:, m]], torch.ones(int(seen[:, m].sum())))
        torch.testing.assert_close(found[m], own[0])


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(stage: str, step: int, parts: Any) -> None:
        if (stage, step) == ("distill", 7):
            raise Stopped

    settings: dict[str, Any] = {"task_loss": {"class_weights": "balanced"}, "run": {"checkpoint_steps": 2}}
    run(tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", observe=stop, **settings)
    run(tmp_path / "parts", **settings)
    for stage in ("cotrain", "specialise", "distill"):
        states = [load_file(tmp_path / name / stage / "result.safetensors") for name in ("whole", "parts")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("method", "why"), [
    ("dkd", "it looks for the one true class"), ("crd", "it draws negatives"), ("dist", "it compares distributions"),
    ("mlld", "it compares distributions"), ("ofa", "it looks for the one"), ("c2kd", "it looks for the one"),
    ("pseudo", "it takes the surest class"),
])  # fmt: skip
def test_methods_of_one_class_are_refused(method: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"method {method} can't run a multi-label task: {why}"):
        run(tmp_path, method=method, alone={"enabled": False}, baseline={"teacher_epochs": 0})


def test_what_cant_be_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_smoothing spreads one true class over the others"):
        run(tmp_path / "a", task_loss={"label_smoothing": 0.1})
    with pytest.raises(ConfigError, match="balanced goes by one class an instance"):
        run(tmp_path / "b", data={"sampler": "balanced"})
    with pytest.raises(DataError, match=r"label of instance \d has shape \[\]; a multi-label task of 3 classes wants"):
        run(tmp_path / "c", train=make_split(40, seed=1))
    with pytest.raises(DataError, match=r"label of instance \d has shape \[3\]; a class an instance is wanted"):
        toy.run(tmp_path / "d", train=Several(40, 1), validation=Several(40, 2), data={"multilabel": False})
    wrong = Several(40, 1)
    wrong.label[7, 1] = 3
    with pytest.raises(DataError, match=r"label of instance 7 holds 3: 0, 1 or -1 \(not known\) is wanted"):
        run(tmp_path / "e", train=wrong)


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """The same in Python; how a label is given differs."""

    def __init__(self, count: int, seed: int, form: Any = np.asarray, unknown: float = 0.0) -> None:
        self.split, self.form = Several(count, seed, unknown), form

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{name: x[i] for name, x in self.split.x.items()}, "label": self.form(self.split.label[i])}


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, list, lambda x: np.where(x < 0, np.nan, x)])
def test_data_sets_in_python_hold_arrays(form: Any, tmp_path: Path) -> None:
    found = run(tmp_path / "items", train=Items(60, 1, form, unknown=0.02), distill={"epochs": 1})
    plain = run(tmp_path / "plain", train=Several(60, 1, unknown=0.02), distill={"epochs": 1})
    assert found.summary["networks"][-1]["test"] == plain.summary["networks"][-1]["test"]
    with pytest.raises(DataError, match=r"data\.multilabel=true|isn't one-hot"):
        toy.run(tmp_path / "undeclared", train=Items(60, 1, form))
    with pytest.raises(DataError, match=r"train\[0\]: label has shape \[\]; data\.multilabel wants 0s and 1s"):
        run(tmp_path / "flat", train=Items(60, 1, lambda label: int(label[0])))


def test_exported_files_answer_yes_or_no_of_each_class(tmp_path: Path) -> None:
    """In the programme beside the file, and where its answers are counted against labels in Python."""
    module = MLP(6, 12, 8, 3)
    student = Student(module, {"modality": "m1", "num_classes": 3, "input_shape": [6], "multilabel": True,
                               "class_names": ["dog", "owl", "rain"]})  # fmt: skip
    done = student.export(tmp_path / "out", ["onnx"], test=Items(40, 3, unknown=0.1))
    assert done.within
    (split,) = done.figures["artefacts"][0]["splits"]
    inputs, label = Several(40, 3, unknown=0.1).fetch(np.arange(40), ["m1"])
    said = student.predict(inputs["m1"])
    known = label >= 0
    assert split["predictions"] == 120
    assert split["student_accuracy"] == pytest.approx(float((said == label)[known].float().mean()))
    np.save(tmp_path / "batch.npy", inputs["m1"].numpy())
    ran = subprocess.run([sys.executable, tmp_path / "out" / "onnx" / "run.py", tmp_path / "batch.npy"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    names = np.array(["dog", "owl", "rain"])
    assert json.loads(ran.stdout) == [names[row == 1].tolist() for row in said.numpy()]


# tasks of one class


def test_class_weights_and_smoothing_are_torch_s_and_reach_every_stage(tmp_path: Path) -> None:
    split = make_split(40, seed=1)
    _, label = split.fetch(np.arange(40), ["m1"])
    weights = balanced(label.numpy(), 3)
    assert float(weights[label].mean()) == pytest.approx(1.0)
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    (batch,) = Loader(split, ["m1"], 40, num_classes=3).epoch()
    found = Objective(class_weights=weights, smoothing=0.1).task(logits, batch)
    wanted = F.cross_entropy(logits, label, weights, reduction="none", label_smoothing=0.1).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    plain = toy.run(tmp_path / "plain")
    for name, task_loss in (("weights", {"class_weights": "balanced"}), ("smooth", {"label_smoothing": 0.2})):
        other = toy.run(tmp_path / name, task_loss=task_loss)
        assert other.summary["networks"][-1]["test"] != plain.summary["networks"][-1]["test"]
        for stage in ("cotrain", "distill", "alone"):
            states = [load_file(tmp_path / one / stage / "result.safetensors") for one in ("plain", name)]
            assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_weights_in_the_kernel_are_those_outside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = toy.run(tmp_path / "fused", task_loss={"class_weights": "balanced"}, distill={"epochs": 1})
    monkeypatch.setattr(Objective, "fused", False)
    apart = toy.run(tmp_path / "apart", task_loss={"class_weights": "balanced"}, distill={"epochs": 1})
    states = [load_file(x.folder / "distill" / "result.safetensors") for x in (fused, apart)]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


def test_balanced_drawing_gives_every_class_its_turn() -> None:
    classes = np.repeat([0, 1, 2, -1], [50, 7, 2, 5])
    whole = balanced_draw(classes, 300, 3, 0)
    assert np.bincount(classes[whole]).tolist() == [100, 100, 100]
    for number in range(3):  # and every instance of a class its own
        counts = np.bincount(whole[classes[whole] == number])
        assert np.ptp(counts[counts > 0]) <= 1
    for start in (0, 1, 64, 299):  # an epoch begins wherever the last one ended
        assert np.array_equal(balanced_draw(classes, 300 - start, 3, start), whole[start:])
    known = classes >= 0
    known[:20] = False
    order = mixed_order(known, 0.5, 8, 3, 2, classes)
    drawn = order[known[order]]
    assert len(drawn) == 32
    assert np.ptp(np.bincount(classes[drawn])) <= 1
    loaders = [Loader(PartlyLabelled(make_split(64, seed=1), known), ["m1"], 8, shuffle=True, num_classes=3,
                      classes=classes, labelled_share=share) for share in (0.5, None, 1.0)]  # fmt: skip
    assert [int(known[loader.order(0)].sum()) for loader in loaders] == [32, 40, 64]


def test_a_balanced_run_stops_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(stage: str, step: int, parts: Any) -> None:
        if (stage, step) == ("distill", 8):
            raise Stopped

    settings: dict[str, Any] = {"data": {"sampler": "balanced"}, "run": {"checkpoint_steps": 2}}
    toy.run(tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        toy.run(tmp_path / "parts", observe=stop, **settings)
    toy.run(tmp_path / "parts", **settings)
    states = [load_file(tmp_path / name / "distill" / "result.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_runs_without_these_keys_stay_bound_as_they_were(tmp_path: Path) -> None:
    toy.run(tmp_path)
    bound = (tmp_path / "binding.json").read_text()
    for key in ("multilabel", "label_columns", "sampler", "task_loss"):
        assert key not in bound
