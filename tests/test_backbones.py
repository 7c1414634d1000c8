"""Backbones: `docs/backbones.md` says what the code has; inputs in the order and layout of the tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mstdistill.backbones.catalogue import backbones, build
from mstdistill.teachers.tap import discover, find

ROOT = Path(__file__).parents[1]


def documented() -> list[tuple[str, ...]]:
    """The table's rows: name, inputs, parameters, what, taps."""
    table = (ROOT / "docs" / "backbones.md").read_text().split("| --- | --- | --: | --- | --- |\n")[1].split("\n\n")[0]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in table.splitlines()]


def classes() -> dict[str, int]:
    """The paper's number of classes, by backbone."""
    cases = json.loads((ROOT / "tests" / "parity" / "golden" / "manifest.json").read_text())["cases"]
    return {c["params"]["backbone"]: c["params"]["logits_shape"][1] for c in cases if c["kind"] == "backbone"}


def test_every_network_of_the_paper_is_checked_and_documented() -> None:
    ours = {name for name, backbone in backbones().items() if "(paper" in backbone.about}
    assert ours == set(classes())
    assert ours <= {row[0] for row in documented()}
    assert len(ours) == 15


@pytest.mark.parametrize("row", documented(), ids=lambda row: row[0])
def test_table(row: tuple[str, ...]) -> None:
    name, inputs, parameters, _, taps = row
    backbone = backbones()[name]
    assert inputs == ", ".join("x".join(map(str, shape)) for shape in backbone.inputs)
    with torch.device("meta"):
        module = backbone.build()
        assert sum(p.numel() for p in module.parameters()) == int(parameters.replace(",", ""))
        last = list(module.state_dict().values())[-1]
        assert last.shape == (classes().get(name, 10),)  # the default is the paper's
    for tap in taps.split(", "):
        find(module, tap, name)


@pytest.mark.parametrize("name", [name for name in sorted(classes()) if "FuseNet" not in name])
def test_registered_inputs_give_logits(name: str) -> None:
    torch.manual_seed(0)
    module = build(name, 3).eval()
    inputs = {f"m{i}": torch.rand(2, *shape) for i, shape in enumerate(backbones()[name].inputs)}
    with torch.no_grad():
        assert module(*inputs.values()).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "before", "inside"),
    [
        ("VisualBranchNet", (15, 3, 224, 224), (3, 15, 224, 224)),
        ("VisualBranchNet-VGGS", (10, 7, 7, 512), (512, 10, 7, 7)),
    ],
)
def test_stored_layouts_are_turned(name: str, before: tuple[int, ...], inside: tuple[int, ...]) -> None:
    """Frames stay frames: a value at one frame, place and channel arrives there."""
    assert backbones()[name].inputs == (before,)
    module = build(name, 3).eval()
    seen: list[torch.Tensor] = []
    module.get_submodule("visual_branch").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.zeros(2, *before)
    x[(1, 4, 2, 5, 6) if name == "VisualBranchNet" else (1, 4, 5, 6, 2)] = 1  # frame 4, channel 2, place (5, 6)
    with torch.no_grad():
        module(x)
    assert tuple(seen[0].shape[1:]) == inside
    assert seen[0][1, 2, 4, 5, 6] == 1


def test_fusenet_maps_have_the_sizes_of_the_paper() -> None:
    """A sixteenth of 480x640 before the last pool, and a thirty-second after it."""
    module = build("FuseNet-I", 41, width=2)
    inputs = {"rgb": torch.rand(1, 3, 480, 640), "depth": torch.rand(1, 1, 480, 640)}
    shapes = discover(module, inputs, ["rgb", "depth"], ["after_fusion_identity", "CBR5_RGBD_DEC"], "FuseNet-I")
    assert shapes == {"after_fusion_identity": (16, 15, 20), "CBR5_RGBD_DEC": (16, 30, 40)}
