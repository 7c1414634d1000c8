"""Mixed instances under every objective: several classes at once, weights of classes, smoothing; and with modalities
that some lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mstdistill import losses
from mstdistill.data.feeding.batch import Batch, Partner
from mstdistill.data.feeding.said import mixed
from mstdistill.objective import Objective
from tests import toy

OWN = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0, 0.9])
QUICK: dict[str, Any] = {"cotrain": {"epochs": 1}, "specialise": {"epochs": 1, "task": 0.5}, "distill": {"epochs": 2},
                         "alone": {"enabled": False}, "augment": {"mixup": 0.5}}  # fmt: skip


def weights(folder: Path, stage: str = "distill") -> dict[str, Tensor]:
    return load_file(folder / stage / "result.safetensors")


def batch(label: Tensor, other: Tensor) -> Batch:
    return Batch({}, label, torch.arange(6), torch.ones(6), 6.0, partner=Partner({}, other, torch.arange(6), OWN))


def test_the_task_mixes_known_entries_alone() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=g, dtype=torch.float64)
    label, other = (torch.randint(-1, 2, (6, 4), generator=g) for _ in range(2))
    weigh, part = torch.rand(2, 4, generator=g, dtype=torch.float64), OWN.double().unsqueeze(1)
    wanted, counted = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for one, share in ((label, part), (other, 1 - part)):
        rows = F.binary_cross_entropy_with_logits(logits, one.clamp(min=0).double(), reduction="none")
        wanted += (rows * torch.where(one == 1, weigh[1], weigh[0]) * (one >= 0) * share).sum()
        counted += ((one >= 0) * share).sum()
    found = Objective(several=True, class_weights=weigh).task(logits, batch(label, other))
    assert float(found) == pytest.approx(float(wanted / counted), rel=1e-6)


def test_weights_and_smoothing_are_mixed_as_labels_are() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=g, dtype=torch.float64)
    label, other = (torch.randint(4, (6,), generator=g) for _ in range(2))
    weigh, part = torch.rand(4, generator=g, dtype=torch.float64), OWN.double()
    rows = [F.cross_entropy(logits, one, weigh, reduction="none", label_smoothing=0.1) for one in (label, other)]
    found = Objective(class_weights=weigh, smoothing=0.1).task(logits, batch(label, other))
    assert float(found) == pytest.approx(float((rows[0] * part + rows[1] * (1 - part)).mean()), rel=1e-12)


def test_what_is_said_of_each_class_is_mixed() -> None:
    g = torch.Generator().manual_seed(0)
    one, two = (8 * torch.randn(6, 2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    part = OWN.double().view(-1, 1, 1)
    told = losses.mixed_logits(one, two, batch(torch.zeros(6), torch.zeros(6)), 3.0, several=True)
    wanted = part * torch.sigmoid(one / 3) + (1 - part) * torch.sigmoid(two / 3)
    assert torch.allclose(torch.sigmoid(told / 3), wanted, rtol=1e-6)
    assert torch.allclose(mixed(one, one, part, 2, True), one, atol=1e-9)  # of two that say the same
    sure = torch.full((6, 2, 4), 200.0)
    assert torch.allclose(mixed(sure, -sure, torch.tensor(0.5), 2, True), torch.zeros(()), atol=1e-4)


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("rule", ["topk-mean", "soft", "agreement"])
def test_teachers_are_mixed_from_a_table_or_live(rule: str, lacking: bool, tmp_path: Path) -> None:
    for mode in ("always", "never"):
        settings: dict[str, Any] = {"routing": {"rule": rule, "signal": "task", "k": 2}, "rounds": {"count": 1},
                                    "distill": {"cache": {"mode": mode}}}  # fmt: skip
        toy.run(tmp_path / mode, several=True, lacking=lacking, hiding=0.3 * lacking, **toy.merged(QUICK, settings))
    cached, live = (weights(tmp_path / mode) for mode in ("always", "never"))
    assert all(torch.allclose(cached[name], live[name], atol=1e-5) for name in cached)
    assert all(bool(torch.isfinite(x).all()) for x in cached.values())


@pytest.mark.parametrize("several", [False, True])
def test_the_kernel_s_task_is_the_one_outside_it(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy.merged(QUICK, {"task_loss": {"class_weights": "balanced"}})
    toy.run(tmp_path / "fused", several=several, **settings)
    monkeypatch.setattr(Objective, "fused", False)
    toy.run(tmp_path / "apart", several=several, **settings)
    fused, apart = weights(tmp_path / "fused"), weights(tmp_path / "apart")
    assert all(torch.allclose(fused[name], apart[name], atol=1e-6) for name in fused)


def test_classes_drawn_evenly_are_mixed_too(tmp_path: Path) -> None:
    found = toy.run(tmp_path, **toy.merged(QUICK, {"data": {"sampler": "balanced"},
                                                   "task_loss": {"label_smoothing": 0.1}}))  # fmt: skip
    assert np.isfinite(found.summary["networks"][-1]["test"]["loss"])


@pytest.mark.parametrize("method", ["kd", "average"])
def test_methods_mix_several_classes(method: str, tmp_path: Path) -> None:
    for mode in ("always", "never"):
        toy.run(tmp_path / mode, several=True, method=method, baseline={"teacher_epochs": 1},
                **toy.merged(QUICK, {"distill": {"cache": {"mode": mode}}}))  # fmt: skip
    cached, live = (weights(tmp_path / mode) for mode in ("always", "never"))
    assert all(torch.allclose(cached[name], live[name], atol=1e-5) for name in cached)
