"""Whole runs: what they leave, cached against live teachers, ready teachers, precision, accumulation, evaluation."""

from __future__ import annotations

import json
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mstdistill import MstdistillError, Student, Teacher, distill
from mstdistill.config import Decay, OptimSettings
from mstdistill.data.feeding.loader import Loader
from mstdistill.engine.checkpoint import optimizer_tensors, restore_optimizer
from mstdistill.engine.loop import Trainer
from mstdistill.engine.optimizer import build_optimizer
from mstdistill.errors import ConfigError
from mstdistill.stages.distill import decayed

from .conftest import MLP, make_split
from .distributed.program import Maps, images
from .toy import SETTINGS, merged, networks, run


def weights(folder: Path, stage: str = "distill") -> dict[str, torch.Tensor]:
    return load_file(folder / stage / "result.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance, name


def test_every_network_takes_the_memory_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison's student too, which is copied before the others are placed."""
    turned: dict[str, bool] = {}
    fit = Trainer.fit

    def look(self: Trainer, stage: Any, *rest: Any) -> Any:
        maps = [p for name, p in stage.module.named_parameters() if name.endswith("down.0.weight")]
        if maps:
            turned[stage.name] = all(p.is_contiguous(memory_format=torch.channels_last) for p in maps)
        return fit(self, stage, *rest)

    monkeypatch.setattr(Trainer, "fit", look)
    teachers = [Teacher("both", Maps(2, 6), ("m1", "m2"), ("down",))]
    short = {"channels_last": True, **{stage: {"epochs": 1} for stage in ("cotrain", "specialise", "distill")}}
    distill(Maps(1, 4), teachers, images(32, 1), images(16, 2), "m1", out=tmp_path, quiet=True,
            settings=merged(SETTINGS, short))  # fmt: skip
    assert turned == {"cotrain": True, "distill": True, "alone": True}


def test_a_run_leaves_everything(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    names = [entry["name"] for entry in summary["networks"]]
    assert names == ["student alone", "teacher both", "teacher other", "distilled student"]
    assert sum(summary["routing_share"].values()) == pytest.approx(1.0)
    figures = {entry["name"]: entry for entry in summary["networks"]}
    assert figures["teacher both"]["validation"]["accuracy"] > 0.6
    assert figures["distilled student"]["test"]["accuracy"] > 0.4
    alone = json.loads((tmp_path / "run" / "alone" / "result.json").read_text())
    assert len(alone["history"]) == 6  # as many epochs in all: 2 of co-training and 4 of distillation
    assert not list((tmp_path / "run").rglob("*.tmp"))
    student = Student.from_pretrained(tmp_path / "run" / "student", module=MLP(6, 12, 8, 3))
    split = make_split(30, seed=3)
    accuracy = (student.predict(split.inputs["m1"]) == split.label).float().mean()
    assert float(accuracy) == pytest.approx(figures["distilled student"]["test"]["accuracy"])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run(tmp_path / "run")
    steps: list[str] = []
    again = run(tmp_path / "run", observe=lambda stage, step, parts: steps.append(stage))
    assert steps == []
    assert again.summary["networks"][-1]["name"] == "distilled student"


def test_same_seed_same_bytes_other_seed_other_weights(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        run(folder, dropout=0.2, seed=seed)
    same(weights(folders[0]), weights(folders[1]), 0.0)
    with pytest.raises(AssertionError):
        same(weights(folders[0]), weights(folders[2]), 1e-6)


@pytest.mark.parametrize(
    ("rule", "signal", "k"),
    [("topk-mean", "task", 1), ("soft", "task", 1), ("topk-mean", "none", 1), ("topk-weighted", "distill", 3),
     ("random", "none", 2)],
)  # fmt: skip
def test_cached_and_live_teachers_give_the_same_losses(rule: str, signal: str, k: int, tmp_path: Path) -> None:
    """float32: within 1e-6 of each other at every step (the batch's composition changes the rounding); live, only the
    chosen teachers run where the rule asks for no other."""
    curves: dict[str, list[float]] = {}
    for mode in ("always", "never"):
        losses: list[float] = []

        def observe(stage: str, step: int, parts: Any, losses: list[float] = losses) -> None:
            if stage in ("specialise", "distill"):
                losses.append(float(parts["loss"]))

        run(
            tmp_path / mode,
            routing={"rule": rule, "signal": signal, "k": k},
            distill={"cache": {"mode": mode}},
            observe=observe,
        )
        curves[mode] = losses
    facts = [json.loads((tmp_path / m / "distill" / "result.json").read_text())["teacher_logits"] for m in curves]
    assert facts[0].startswith("table of [80, 4, 3] float32")
    assert facts[1] == "live: distill.cache.mode=never"
    assert curves["always"] == pytest.approx(curves["never"], rel=1e-5, abs=1e-6)
    same(weights(tmp_path / "always"), weights(tmp_path / "never"), 1e-5)


def test_random_data_and_small_budgets_fall_back_to_live_teachers(tmp_path: Path) -> None:
    noisy = make_split(40)
    noisy.deterministic = False
    run(tmp_path / "a", train=noisy)
    run(tmp_path / "b", distill={"cache": {"budget_gb": 1e-7}})
    facts = [json.loads((tmp_path / f / "distill" / "result.json").read_text())["teacher_logits"] for f in "ab"]
    assert facts[0].startswith("live: the data change")
    assert facts[1].startswith("live: a table of")
    run(tmp_path / "c", distill={"cache": {"budget_gb": 2.5e-6}})
    assert "float16" in json.loads((tmp_path / "c" / "distill" / "result.json").read_text())["teacher_logits"]


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    """Without load balance, which is defined per micro-batch; 70 instances leave a short last step."""
    settings = {"distill": {"weights": {"balance": 0.0}}}
    run(tmp_path / "whole", count=70, batch_size=16, **settings)
    run(tmp_path / "parts", count=70, batch_size=4, accumulate=4, **settings)
    for stage in ("cotrain", "specialise", "distill", "alone"):
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "parts", stage), 2e-5)


def test_bfloat16_clipping_and_schedules_run(tmp_path: Path) -> None:
    stage = {"clip_norm": 0.5, "schedule": "cosine", "warmup_steps": 3, "optimizer": "adamw", "weight_decay": 0.01}
    result = run(
        tmp_path / "run", precision="bf16", cotrain={**stage, "select": "best"}, specialise=stage, distill=stage
    )
    assert result.summary["networks"][-1]["test"]["accuracy"] > 0.35


def test_ready_teachers_skip_or_join_stage_one(tmp_path: Path) -> None:
    student, teachers = networks()
    before = {name: x.clone() for name, x in teachers[1].module.state_dict().items()}
    teachers[1].frozen = True
    from mstdistill import distill

    from .toy import SETTINGS, merged

    out = distill(student, teachers, make_split(60, seed=1), make_split(20, seed=2), "m1", out=tmp_path / "a",
                  settings=merged(SETTINGS, {"mask": {"enabled": False}}), quiet=True)  # fmt: skip
    assert all(torch.equal(x, before[name]) for name, x in teachers[1].module.state_dict().items())
    assert set(out.summary["routing_share"]) == {"both", "other"}  # no masks: the teachers themselves
    result = run(tmp_path / "b", cotrain={"epochs": 0})
    assert result.summary["stages"]["cotrain"]["best_epoch"] == -1
    figures = {entry["name"]: entry for entry in result.summary["networks"]}
    assert figures["teacher other"]["validation"]["accuracy"] < 0.6


def test_stages_run_one_by_one(tmp_path: Path) -> None:
    for stop in ("cotrain", "specialise", None):
        run(tmp_path / "steps", run={"stop_after": stop})
    run(tmp_path / "whole")
    same(weights(tmp_path / "steps"), weights(tmp_path / "whole"), 0.0)


def test_teacher_near_chance_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mstdistill import distill

    from .toy import SETTINGS, merged

    student, teachers = networks()
    distill(student, teachers, make_split(40, seed=1), make_split(30, seed=2), "m1", out=tmp_path / "r",
            settings=merged(SETTINGS, {"cotrain": {"epochs": 0}, "distill": {"epochs": 1}}))  # fmt: skip
    shown = capsys.readouterr().out
    assert "warning: teacher" in shown
    assert "raise cotrain.epochs (now 0)" in shown


@pytest.mark.parametrize(("change", "words"), [
    ({"routing": {"k": 5}}, "routing.k=5: must be between 1 and the 4 specialised teachers"),
    ({"method": "mts"}, "unknown method 'mts'; did you mean mst"),
    ({"mask": {"heads": 3, "hidden": 4}}, "multiple of its 3 heads"),
    ({"precision": "fp16"}, "fp16 needs a GPU"),
    ({"run": {"trackers": ["tensorbord"]}}, "unknown tracker 'tensorbord'"),
    ({"distil": {}}, "unknown key 'distil'; did you mean distill"),
])  # fmt: skip
def test_impossible_settings_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MstdistillError) as error:
        run(tmp_path / "run", **change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_networks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from mstdistill import Teacher, distill

    student, _ = networks()

    def refuses(words: str, teachers: list[Teacher]) -> None:
        with pytest.raises(ConfigError) as error:
            distill(student, teachers, make_split(20), make_split(20), "m1", out=tmp_path / "r", quiet=True,
                    settings={"run": {"trackers": [], "page": False}})  # fmt: skip
        assert words in str(error.value)

    with pytest.raises(ConfigError, match=r"student can't take \{'m1': \[2, 6\]\}"):
        distill(MLP(7, 4, 4, 3), [], make_split(20), make_split(20), "m1", out=tmp_path / "r", quiet=True)
    refuses("no teachers: give at least one", [])
    assert Teacher("a", MLP(5, 4, 4, 3), "m2", "fc1").modalities == ("m2",)  # type: ignore[arg-type]
    refuses("teacher 'a' can't take", [Teacher("a", MLP(7, 4, 4, 3), ("m2",))])
    refuses("gives logits [20, 4]; the task has 3 classes", [Teacher("a", MLP(5, 4, 4, 4), ("m2",))])
    refuses("no tap 'fc9'; did you mean", [Teacher("a", MLP(5, 4, 4, 3), ("m2",), ("fc9",))])
    refuses("name of its own", [Teacher("a", MLP(5, 4, 4, 3), ("m2",)), Teacher("a", MLP(5, 4, 4, 3), ("m2",))])


def test_released_decay_of_loss_weights() -> None:
    kd = [decayed(1.0, Decay(factor=0.5, every=30), e) for e in (0, 1, 30, 31, 60, 61)]
    assert kd == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125]
    late = [decayed(1.0, Decay(factor=0.5, every=30, first=False), e) for e in (0, 1, 30, 31)]
    assert late == [1.0, 1.0, 1.0, 0.5]


def test_background_processes_are_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More epochs start no more of them, though every validation asks for its loader."""
    from mstdistill.data.feeding import loader

    started: list[int] = []

    class Counted(loader.DataLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started[-1] += 1

    monkeypatch.setattr(loader, "DataLoader", Counted)
    for epochs in (1, 3):
        started.append(0)
        run(tmp_path / str(epochs), data={"workers": 1}, distill={"epochs": epochs}, alone={"enabled": False})
    assert started[0] == started[1] > 0


def test_background_processes_end_with_their_loader() -> None:
    """At once, and without a garbage collection, which would close their pipes before they are told."""
    before = set(active_children())
    loader = Loader(make_split(12), ["m1"], 4, workers=1)
    assert len(list(loader.epoch())) == 3
    (process,) = set(active_children()) - before
    del loader
    assert not process.is_alive()
    assert process.exitcode == 0


def test_moments_lie_in_memory_as_their_parameters() -> None:
    """A fused step reads both as they lie: a convolution in channels-last would go on with another one's moments."""
    whole, resumed = (torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2))
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    settings = OptimSettings(lr=0.1)
    optimizers = [build_optimizer(settings, module) for module in (whole, resumed)]

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()

    step(whole, optimizers[0])
    tensors, groups = optimizer_tensors(optimizers[0])
    resumed.load_state_dict(whole.state_dict())
    restore_optimizer(optimizers[1], {name: value.contiguous().clone() for name, value in tensors.items()}, groups)
    for module, optimizer in zip((whole, resumed), optimizers, strict=True):
        step(module, optimizer)
    assert torch.equal(whole.weight, resumed.weight)
