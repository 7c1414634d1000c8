"""The five tasks as a user runs them: publishers' files -> prepare -> train (three stages) -> evaluate -> export."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mstdistill import Student
from mstdistill.data.prepared import build as building
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.registry import find_task

from . import publishers
from .conftest import Command, refused
from .test_prepare import contents

SHORT = {
    "cotrain": {"epochs": 1, "lr": 1e-3}, "specialise": {"epochs": 1, "lr": 1e-3},
    "distill": {"epochs": 1, "lr": 1e-3}, "alone": {"epochs": 1}, "mask": {"hidden": 3},
    "run": {"trackers": [], "page": False},
}  # fmt: skip


def av_mnist(tmp: Path) -> list[object]:
    return ["--mnist", publishers.mnist(tmp / "mnist", 200), "--fsdd", publishers.fsdd(tmp / "fsdd")]


def ravdess(tmp: Path) -> list[object]:
    return ["--source", publishers.ravdess(tmp / "raw", clips=15, size=(48, 64)), "--faces", "centre"]


def vggsound(tmp: Path) -> list[object]:
    encoders = publishers.image_encoder(tmp / "vgg", 512), publishers.vggish(tmp / "vggish.pth")
    return ["--source", publishers.vggsound_clips(tmp / "raw", clips=15), "--frames", 1, "--image-encoder", encoders[0],
            "--audio-encoder", encoders[1]]  # fmt: skip


def crisismmd(tmp: Path) -> list[object]:
    encoders = publishers.image_encoder(tmp / "resnet", 2048), publishers.text_encoder(tmp / "bert")
    return ["--source", publishers.crisismmd(tmp / "raw", tweets=30), "--image-encoder", encoders[0],
            "--text-encoder", encoders[1]]  # fmt: skip


def nyu_depth(tmp: Path) -> list[object]:
    return ["--source", publishers.nyu_depth(tmp / "raw", scenes=10), "--size", "32x64"]


TASKS: dict[str, tuple[Callable[[Path], list[object]], str, dict[str, Any]]] = {
    "av-mnist": (av_mnist, "audio", {}),
    "ravdess": (ravdess, "audio", {}),
    "vggsound-50k": (vggsound, "visual", {}),
    "crisismmd-v2": (crisismmd, "text", {}),
    "nyu-depth-v2": (nyu_depth, "rgb", {"width": 8}),
}


def recipe(task: str, target: str, options: dict[str, Any], folder: Path) -> Path:
    """The shipped recipe made short, its networks with these options."""
    content = yaml.safe_load(resources.files("mstdistill.recipes").joinpath(f"{task}.yaml").read_text())
    content |= {**SHORT, "target": target, "batch_size": 4}
    for pairing in content["models"].values():
        for model in (pairing["student"], *pairing["teachers"]):
            model["options"] = options
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def stopping_at(number: int) -> Callable[..., Any]:
    """`write_shard` that is interrupted at its n-th call."""
    real, calls = building.write_shard, []

    def write(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_from_raw_files_to_a_student(
    task: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way, preparing is interrupted and gone on with: the same bytes."""
    make, target, options = TASKS[task]
    monkeypatch.setattr(building, "SHARD_ROWS", (6, 6))
    raw = make(tmp_path)
    code, shown, err = command("prepare", task, "--out", tmp_path / "data", *raw)
    assert (code, err) == (0, ""), err
    assert "instances in" in shown
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_shard", stopping_at(2))
        assert command("prepare", task, "--out", tmp_path / "again", *raw)[0] == 130
    assert command("prepare", task, "--out", tmp_path / "again", *raw)[0] == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "data")
    words = [recipe(task, target, options, tmp_path), f"data.dir={tmp_path / 'data'}", "--out", tmp_path / "run"]
    assert command("train", *words)[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["stages"]) == {"cotrain", "specialise", "distill", "alone"}
    assert len(summary["routing_share"]) == 4
    assert sum(summary["routing_share"].values()) == pytest.approx(1.0)
    assert command("evaluate", tmp_path / "run")[0] == 0
    figures = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    assert figures["accuracy"] == pytest.approx(summary["networks"][-1]["test"]["accuracy"])
    assert command("export", tmp_path / "run", tmp_path / "student")[0] == 0
    student = Student.from_pretrained(tmp_path / "student")
    split = open_splits(find_task(task), str(tmp_path / "data"))["test"]
    inputs, label = split.fetch(np.arange(2), [target])
    assert student.predict(inputs[target]).shape == label.shape
    refused(command("train", *words, "distill.epochs=2"), "holds a run of another config")
