"""Faster ways to run the same training give the same numbers: Triton kernels, resident data, recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.data.feeding.batch import Batch
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.feeding.resident import ResidentSplit, resident_bytes
from mstdistill.engine import loop
from mstdistill.engine.graph import StepGraph

from .conftest import make_split
from .toy import run

Curve = list[tuple[str, int, dict[str, Any]]]


def curve(out: Path, **settings: Any) -> tuple[Curve, dict[str, torch.Tensor]]:
    """Every step's losses of a toy run, and the student's weights."""
    seen: Curve = []

    def observe(stage: str, step: int, parts: Any) -> None:
        seen.append((stage, step, {name: np.asarray(value) for name, value in parts.items()}))

    result = run(out, observe=observe, **settings)
    return seen, result.student.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("rule", [{}, {"rule": "soft", "signal": "both", "balance": "CV"}])
def test_both_kernel_sets_train_alike(rule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, all three stages: every loss of every step within 1e-5 relative, weights within 1e-4."""
    settings: dict[str, Any] = {
        "count": 24, "batch_size": 16, "cotrain": {"epochs": 1}, "specialise": {"epochs": 1}, "distill": {"epochs": 1},
        "routing": {"k": 2, **rule}, "alone": {"enabled": False},
    }  # fmt: skip
    plain, plain_weights = curve(tmp_path / "torch", **settings)
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")
    found, weights = curve(tmp_path / "triton", **settings)
    assert [step[:2] for step in plain] == [step[:2] for step in found]
    for (stage, number, a), (_, _, b) in zip(plain, found, strict=True):
        for name in a:
            assert np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6), (stage, number, name)
    for name, wanted in plain_weights.items():
        assert torch.allclose(weights[name], wanted, atol=1e-4), name


def test_resident_data_give_the_same_batches() -> None:
    split = make_split(37)
    plain = Loader(split, ["m1", "m2"], 8, shuffle=True, seed=3)
    resident = ResidentSplit(Loader(split, ["m1", "m2"], 5), torch.device("cpu"))
    near = Loader(resident, ["m1"], 8, shuffle=True, seed=3)
    assert len(resident) == 37
    assert resident_bytes(plain) == 37 * (6 + 5) * 4 + 37 * 8
    for epoch in range(2):
        for a, b in zip(plain.epoch(epoch), near.epoch(epoch), strict=True):
            assert torch.equal(a.inputs["m1"], b.inputs["m1"])
            assert torch.equal(a.label, b.label)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.weight, b.weight)


class Again:
    """Records by remembering the function: what is checked is what a recording holds fast and what it must not."""

    @contextmanager
    def around(self) -> Iterator[None]:
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_recorded_steps_train_alike(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without, over changing loss weights, learning rates and a short last batch; within float32's rounding, since a
    recorded step reads its learning rate from a float32 in memory."""
    graphs: list[StepGraph] = []
    make = StepGraph.__init__

    def remembered(self: StepGraph, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        graphs.append(self)

    monkeypatch.setattr(StepGraph, "__init__", remembered)
    monkeypatch.setattr(loop, "recorder_for", lambda device: Again())
    settings: dict[str, Any] = {
        "cotrain": {"epochs": 1}, "specialise": {"epochs": 1}, "alone": {"enabled": False},
        "distill": {"epochs": 3, "optimizer": optimizer, "schedule": "cosine", "clip_norm": 1.0,
                    "weights": {"kd_decay": {"factor": 0.5, "every": 1}}},
    }  # fmt: skip
    plain, plain_weights = curve(tmp_path / "plain", **settings)
    assert not graphs
    found, weights = curve(tmp_path / "recorded", **settings, run={"cuda_graph": True})
    assert len(graphs) == 1
    assert graphs[0].replays > 0
    for (_, _, a), (_, _, b) in zip(plain, found, strict=True):
        assert all(np.allclose(a[name], b[name], rtol=2e-5, atol=1e-6) for name in a)
    assert all(torch.allclose(weights[name], wanted, atol=1e-5) for name, wanted in plain_weights.items())


def test_a_recording_copies_batches_in_and_is_renewed_with_its_key() -> None:
    seen: list[list[float]] = []

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.inputs["x"].tolist())
        return {"loss": batch.inputs["x"].sum()}

    def batch(*values: float) -> Batch:
        count = len(values)
        return Batch(
            {"x": torch.tensor(values)}, torch.zeros(count), torch.arange(count), torch.ones(count), float(count)
        )

    graph = StepGraph(step, Again(), warmup=1)
    assert [float(graph(batch(i, i), "a")["loss"]) for i in range(4)] == [0.0, 2.0, 4.0, 6.0]
    assert graph.replays == 3
    assert float(graph(batch(7.0), "a")["loss"]) == 7.0  # another size runs plainly first
    assert float(graph(batch(8.0, 8.0), "b")["loss"]) == 16.0
    assert graph.replays == 3
    assert seen[-1] == [8.0, 8.0]
