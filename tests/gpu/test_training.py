"""What only a GPU can show. Needs the whole package; one command: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.data.feeding.loader import Loader
from mstdistill.data.feeding.resident import ResidentSplit
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.plan import Column, Item, Plan
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.engine.progress import Screen

from ..test_augment import EVERYTHING, NOISY, augmentation, instances
from ..toy import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", ["always", "never"])
def test_gpu_and_cpu_learn_the_same(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 without TF32: losses within 1e-4 relative over the whole toy run."""
    torch.backends.cuda.matmul.allow_tf32 = False
    curves: list[list[float]] = []
    for cpu in ("true", "false"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
        losses: list[float] = []

        def observe(stage: str, step: int, parts: Any, losses: list[float] = losses) -> None:
            losses.append(float(parts["loss"]))

        result = run(tmp_path / cpu, observe=observe, distill={"cache": {"mode": mode}})
        assert next(result.student.parameters()).device.type == ("cpu" if cpu == "true" else "cuda")
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    result = run(tmp_path / "run", precision=precision, cotrain={"epochs": 4}, distill={"clip_norm": 1.0})
    assert result.summary["networks"][-1]["test"]["accuracy"] > 0.4


def test_prepared_bytes_become_floats_on_the_gpu(tmp_path: Path) -> None:
    """Batches read ahead into page-locked memory, scaled where they go, are those that the CPU gives."""
    columns = {"a": Column((3, 8, 8), "uint8", "channel", 0), "b": Column((4,), "float16")}
    rng = np.random.default_rng(0)
    rows = [{"a": rng.integers(0, 255, (3, 8, 8), dtype=np.uint8), "b": rng.random(4)} for _ in range(50)]
    plan = Plan("toy", 1, columns, [Item(str(i), i, i % 3) for i in range(50)], rows.__getitem__, {})
    folder = build(tmp_path / "out", plan, Screen(quiet=True), 1)
    split = PreparedSplit(folder, "all", read_card(folder))
    gpu = torch.device("cuda")
    near = ResidentSplit(Loader(split, ["a", "b"], 8), gpu)
    for source, extra in ((split, {"threads": 2}), (split, {"workers": 2}), (near, {})):
        plain, other = (Loader(s, ["a", "b"], 8, shuffle=True, **e) for s, e in ((split, {}), (source, extra)))
        for one, two in zip(plain.epoch(0), other.epoch(0), strict=True):
            if source is split:
                assert two.inputs["a"].is_pinned()
            assert two.inputs["a"].dtype == torch.uint8
            wanted, found = one.to(torch.device("cpu")), two.to(gpu)
            for name in wanted.inputs:
                assert torch.allclose(found.inputs[name].cpu(), wanted.inputs[name], rtol=0, atol=1e-7)


def test_instances_are_changed_on_a_gpu_as_on_a_cpu() -> None:
    """The same bytes, but for what interpolates."""
    inputs, index, gpu = instances(), torch.arange(23), torch.device("cuda")
    still = [one for one in EVERYTHING["image"] if "turn" not in one]
    for changes in ({**EVERYTHING, "image": still}, {**EVERYTHING, "image": [{"turn": 15}]}):
        change = augmentation(changes, inputs)
        wanted = change(inputs, index, 3)
        found = change({name: x.to(gpu) for name, x in inputs.items()}, index.to(gpu), 3)
        for name, x in wanted.items():
            if {"turn": 15} in changes[name]:
                assert torch.allclose(found[name].cpu(), x, atol=1e-5)
            else:
                assert torch.equal(found[name].cpu(), x)


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.5}, {"teachers": "same"}, {"teachers": "views"}])
def test_augmented_steps_are_the_same_with_data_held_on_the_gpu(
    augment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read batch by batch, held on the GPU, and with recorded steps where that is possible: losses within 1e-4."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    curves: list[list[float]] = []
    for name, settings in (("read", {"resident_gb": 0}), ("held", {}), ("recorded", {"cuda_graph": True})):
        losses: list[float] = []

        def observe(stage: str, step: int, parts: Any, losses: list[float] = losses) -> None:
            losses.append(float(parts["loss"]))

        run(tmp_path / name, observe=observe, augment={**NOISY, **augment}, run=settings)
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-5)
    assert curves[0] == pytest.approx(curves[2], rel=1e-4, abs=1e-5)
