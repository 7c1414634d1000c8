"""Whole runs on other shapes: three modalities, token and map features, dense labels with an ignored class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mstdistill import Teacher, distill

from .conftest import MLP, TensorSplit, make_split
from .toy import SETTINGS, merged


class Tokens(nn.Module):
    """[B, 5] -> tokens [B, 5, 6] -> logits, with a tuple on the way as transformers' layers emit."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(1, 6), nn.Linear(6, 6), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(torch.relu(self.embed(x[:, :, None])))
        return self.head(torch.relu(tokens).flatten(1))


class Maps(nn.Module):
    """[B, 4] -> maps [B, 6, 4, 4] -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.conv, self.head = nn.Linear(4, 16), nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(self.spread(x).view(-1, 1, 4, 4))
        return self.head(torch.relu(maps).mean(dim=(2, 3)))


def three_modalities(count: int, seed: int) -> TensorSplit:
    base = make_split(count, seed=seed)
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    base.inputs["m3"] = base.label[:, None].float() + 0.3 * noise
    base.fingerprint += "-three"
    return base


def test_three_modalities_tokens_and_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teachers = [
        Teacher("all", MLP(15, 12, 8, 3), ("m1", "m2", "m3"), ("fc1", "fc2")),
        Teacher("tokens", Tokens(), ("m2",), ("mix",)),
        Teacher("maps", Maps(), ("m3",), ("conv", "spread")),
        Teacher("pair", MLP(9, 12, 8, 3), ("m2", "m3"), ("fc2",)),
    ]
    result = distill(
        MLP(6, 12, 8, 3), teachers, three_modalities(80, 1), three_modalities(30, 2), "m1",
        test=three_modalities(30, 3), out=tmp_path / "run", quiet=True,
        settings=merged(SETTINGS, {"routing": {"k": 3}}),
    )  # fmt: skip
    names = ["all.fc1", "all.fc2", "tokens.mix", "maps.conv", "maps.spread", "pair.fc2"]
    assert list(result.summary["routing_share"]) == names
    kinds = {entry["name"]: entry["kind"] for entry in result.summary["networks"]}
    assert kinds["teacher all"] == "multimodal"
    assert kinds["teacher pair"] == kinds["teacher tokens"] == "crossmodal"
    masks = load_file(tmp_path / "run" / "specialise" / "result.safetensors")
    assert masks["masks.3.spatial_reduce.downsample.2.running_mean"].shape == (6,)
    records = json.loads((tmp_path / "run" / "specialise" / "result.json").read_text())["history"]
    assert set(names) <= {key.removeprefix("validation/") for key in records[0]}


class Dense(nn.Module):
    """[B, c, 8, 8] -> [B, 4, 8, 8]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enc, self.dec = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, *views: Tensor) -> Tensor:
        return self.dec(torch.relu(self.enc(torch.cat(views, dim=1))))


def dense_split(count: int, seed: int) -> TensorSplit:
    """Class per pixel, 0 is unlabelled."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (count, 8, 8), generator=g)
    clear = nn.functional.one_hot(label, 4).permute(0, 3, 1, 2).float()
    noisy = clear + 1.0 * torch.randn(count, 4, 8, 8, generator=g)
    return TensorSplit({"rgb": noisy, "depth": clear}, label, f"dense-{count}-{seed}")


@pytest.mark.parametrize("rule", ["topk-mean", "soft"])
def test_dense_labels_with_an_ignored_class(rule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teachers = [
        Teacher("both", Dense(8), ("rgb", "depth"), ("enc",)),
        Teacher("depth", Dense(4), ("depth",), ("enc",)),
    ]
    result = distill(
        Dense(4), teachers, dense_split(24, 1), dense_split(8, 2), "rgb", test=dense_split(8, 3), ignore_index=0,
        out=tmp_path / "run", quiet=True,
        settings=merged(SETTINGS, {"batch_size": 8, "routing": {"rule": rule, "signal": "task"},
                                   "cotrain": {"epochs": 30, "lr": 0.03}}),
    )  # fmt: skip
    figures = {entry["name"]: entry["test"] for entry in result.summary["networks"]}
    assert figures["teacher depth"]["miou"] > 0.9  # the clear view
    assert 0.3 < figures["distilled student"]["accuracy"] <= 1.0
    manifest = json.loads((tmp_path / "run" / "cache" / "teachers-train" / "cache.json").read_text())
    assert manifest["shape"] == [24, 2, 4, 8, 8]
