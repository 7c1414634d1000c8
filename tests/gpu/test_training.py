"""What only a GPU can show. Needs the whole package; one command: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
