"""`mstdistill import`: the authors' checkpoints become safetensors, or one line says why not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mstdistill.backbones.catalogue import build
from mstdistill.weights import load_weights

from .conftest import Command
from .conftest import refused as one_line


@pytest.fixture
def command(command: Command) -> Command:
    return lambda *words: command("import", *words)


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Callable[..., None]:
    """Exit code 2, one line, nothing written."""

    def run(words: tuple[object, ...], *wanted: str, out: Path = tmp_path / "out.safetensors") -> None:
        before = sorted(tmp_path.iterdir())
        one_line(command(*words, "--out", out), *wanted)
        assert sorted(tmp_path.iterdir()) == before

    return run


def saved(path: Path, name: str = "LeNet5", classes: int = 10, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = build(name, classes, **options).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("name", "classes", "options"),
    [("LeNet5", 10, {}), ("DSCNN-VGGS-I", 7, {}), ("FuseNet-I", 41, {"width": 4}), ("CNN-I", 3, {})],
)
def test_round_trip(command: Command, tmp_path: Path, name: str, classes: int, options: dict[str, Any]) -> None:
    state = saved(tmp_path / "in.pth", name, classes, **options)
    out = tmp_path / "new" / "folder" / "out.safetensors"
    words = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
    code, shown, err = command(tmp_path / "in.pth", "--backbone", name, *words, "--out", out)
    assert code == 0, err
    parameters = sum(p.numel() for p in build(name, classes, **options).parameters())
    assert len(shown.strip().splitlines()) == 1
    for word in (f"{classes} classes", f"{len(state)} tensors", f"{parameters:,} parameters", f"weights: {out}"):
        assert word in shown
    found = load_file(out)
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "backbone": name}
    load_weights(build(name, classes, **options), str(out), "student")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict"])
def test_wrapped_and_data_parallel(command: Command, tmp_path: Path, wrap: str) -> None:
    state = saved(tmp_path / "plain.pth")
    parallel = {f"module.{key}": value for key, value in state.items()}
    torch.save({wrap: parallel, "epoch": 3}, tmp_path / "in.pth")
    code, _, err = command(tmp_path / "in.pth", "--backbone", "LeNet5", "--out", tmp_path / "out.safetensors")
    assert code == 0, err
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_weights_of_something_else(refused: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "in.pth"
    state = saved(file)
    refused((file, "--backbone", "CNN-I"), "CNN-I", "in.pth")
    refused((file, "--backbone", "MLP-Vb"), "lacks", "MLP-Vb")
    refused((file, "--backbone", "LeNet"), "unknown backbone 'LeNet'", "LeNet5")
    refused((file, "--backbone", "LeNet5", "--num-classes", 7), "'fc2.weight'", "[10, 84]", "[7, 84]")
    refused((file, "--backbone", "LeNet5", "--option", "width=3"), "width")
    refused((file, "--backbone", "LeNet5", "--option", "width"), "key=value")
    refused((file, "--backbone", "LeNet5", "--option", "width=[1"), "key=value")
    torch.save({key: value for key, value in state.items() if key != "conv2.bias"}, file)
    refused((file, "--backbone", "LeNet5"), "lacks 'conv2.bias'")
    torch.save({**state, "fc9.weight": torch.zeros(1)}, file)
    refused((file, "--backbone", "LeNet5"), "'fc9.weight'")
    saved(file, "FuseNet-Dbranch", 5, width=4)
    refused((file, "--backbone", "FuseNet-Dbranch"), "shape", "CBR1_DEPTH_ENC")


def test_files_that_are_no_state_dict(refused: Callable[..., None], tmp_path: Path) -> None:
    words = (tmp_path / "in.pth", "--backbone", "LeNet5")
    refused(words, "can't be read", "No such file")
    state = saved(words[0])
    whole = words[0].read_bytes()
    for size in (0, 2, 1000, len(whole) - 100):
        words[0].write_bytes(whole[:size])
        refused(words, "in.pth")
    words[0].write_bytes(b"not a checkpoint at all\n" * 50)
    refused(words, "in.pth")
    torch.save(state, words[0], _use_new_zipfile_serialization=False)
    legacy = words[0].read_bytes()
    for size in (20, 500, len(legacy) - 100):
        words[0].write_bytes(legacy[:size])
        refused(words, "in.pth")
    for value in ([1, 2], {"epoch": 3}, {}, torch.zeros(3), {3: torch.zeros(2)}):
        torch.save(value, words[0])
        refused(words, "no plain state dict")
    refused((tmp_path, "--backbone", "LeNet5"), "can't be read")
    damaged = tmp_path / "in.safetensors"
    damaged.write_bytes(b"half")
    refused((damaged, "--backbone", "LeNet5"), "can't be read")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_pickles_never_run(refused: Callable[..., None], tmp_path: Path) -> None:
    words = (tmp_path / "in.pth", "--backbone", "LeNet5")
    trap = tmp_path / "sprung"
    torch.save({"conv1.weight": Trap(trap)}, words[0])
    refused(words, "could run code")
    words[0].write_bytes(pickle.dumps(Trap(trap)))
    refused(words, "in.pth")
    torch.save(nn.Linear(2, 2), words[0])
    refused(words, "could run code", "state_dict()")
    assert not trap.exists()


def test_where_it_goes(refused: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "in.pth"
    saved(file)
    refused((file, "--backbone", "LeNet5"), "out.safetensors", out=tmp_path / "out.pth")
    there = tmp_path / "there.safetensors"
    there.write_text("kept")
    refused((file, "--backbone", "LeNet5"), "there already", out=there)
    refused((file, "--backbone", "LeNet5"), "can't write", out=there / "out.safetensors")
    assert there.read_text() == "kept"
