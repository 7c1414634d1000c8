"""Where networks look: Grad-CAM against numbers by hand, masks that change nothing, networks without maps, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mstdistill.errors import ConfigError
from mstdistill.report.gradcam import class_score, correlation, enlarged, grad_cam, places

from .conftest import Command


class Small(nn.Module):
    """conv, ReLU, mean, linear: its Grad-CAM is the linear's weights of the class over the conv's maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.act(self.conv(x)).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


def test_a_map_is_what_the_equations_say(small: Small) -> None:
    x, classes = torch.randn(5, 1, 6, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    maps, logits = grad_cam(small, {"image": x}, ("image",), "act", classes)
    feature = small.act(small.conv(x))
    # y = w . mean(A) + b, so dy/dA = w / Z, and so is its mean
    by_hand = torch.einsum("bk,bkij->bij", small.fc.weight[classes], feature).relu() / 42
    assert torch.allclose(maps, by_hand, atol=1e-14)
    assert torch.allclose(logits, small(x), atol=1e-14)
    assert all(p.grad is None for p in small.parameters())


def test_a_mask_of_ones_moves_nothing_and_one_of_zeros_takes_the_evidence(small: Small) -> None:
    x, classes = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    before, _ = grad_cam(small, {"image": x}, ("image",), "act", classes)
    same, _ = grad_cam(small, {"image": x}, ("image",), "act", classes, [("act", lambda f: f * torch.ones_like(f))])
    none, logits = grad_cam(small, {"image": x}, ("image",), "act", classes, [("act", lambda f: f * 0)])
    assert torch.equal(before, same)
    assert not none.any()
    assert torch.allclose(logits, small.fc.bias.expand(4, -1))


def test_the_place_is_found_for_each_input_of_its_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
            self.unused, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            self.unused(a)
            features = [self.left(a).mean(dim=(2, 3)), self.right(b).mean(dim=(2, 3))]
            logits: Tensor = self.fc(torch.cat(features, dim=1))
            return logits

    torch.manual_seed(0)
    inputs = {"a": torch.randn(4, 1, 8, 8), "b": torch.randn(4, 1, 9, 9)}
    found = places(Two().eval(), inputs, ("a", "b"), torch.tensor([0, 1, 2, 0]))
    assert (found["a"].layer, found["a"].size) == ("left", (6, 6))
    assert found["b"].layer in ("right", "right.1")
    assert found["b"].size == (5, 5)


def test_networks_without_maps_have_none() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    x = torch.randn(4, 1, 6, 6)
    assert places(flat, {"image": x}, ("image",), torch.zeros(4, dtype=torch.int64)) == {}
    with pytest.raises(ConfigError, match="doesn't depend"):
        grad_cam(Small().eval(), {"image": x}, ("image",), "conv", torch.zeros(4).long(),
                 [("act", lambda f: f.detach())])  # fmt: skip


def test_scores_sizes_and_likeness() -> None:
    dense = torch.zeros(1, 2, 2, 2)
    dense[0, 1, 0] = 3.0  # class 1 in the upper row
    assert class_score(dense, torch.tensor([1])).item() == 6.0
    large = enlarged(torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]]), (4, 4))
    assert large.shape == (2, 4, 4)
    assert large.amax(dim=(1, 2)).tolist() == [1.0, 0.0]
    a = torch.rand(3, 5, 5, dtype=torch.float64)
    assert torch.allclose(correlation(a, 2 * a + 1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(correlation(a, -a), -torch.ones(3, dtype=torch.float64))
    assert correlation(a, torch.ones_like(a)).isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["image", "audio"])
def test_the_section_of_a_run(target: str, tmp_path: Path, command: Command) -> None:
    settings = ["cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=1", "alone.enabled=false", "data.limit=300",
                "run.trackers=[]", "run.page=false", f"target={target}"]  # fmt: skip
    assert command("train", "av-digits", "--out", tmp_path / "run", *settings)[0] == 0
    assert command("report", tmp_path / "run")[0] == 0
    found = json.loads((tmp_path / "run" / "report.json").read_text())["attention"]
    assert found["instances"] == 60
    assert {entry["network"] for entry in found["layers"]} == {
        "student",
        "both",
        "audio" if target == "image" else "image",
    }
    assert 0 < len(found["samples"]) <= 6
    shared = [entry for entry in found["drift"] if entry["sees"] == target]
    assert shared
    assert all(-1 <= entry["before"] <= 1 and -1 <= entry["after"] <= 1 for entry in shared if entry["instances"])
    assert all(entry["before"] is None for entry in found["drift"] if entry["sees"] != target)
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("data:image/png;base64,") >= 6 * len(found["layers"])
