"""FuseNet: one forward for all its specialised teachers, sizes that pools don't divide, a start from ImageNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mstdistill.backbones.catalogue import build
from mstdistill.backbones.fusenet import tiled
from mstdistill.config import load
from mstdistill.errors import ConfigError
from mstdistill.material import Material
from mstdistill.teachers.ensemble import Ensemble
from mstdistill.teachers.tap import Teacher

from .test_ensemble import masks_for

WIDTH, CLASSES = 4, 5
SHAPES = {"rgb": (3, 32, 64), "depth": (1, 32, 64)}
SEEN = {"FuseNet-I": ("rgb", "depth"), "FuseNet-Dbranch": ("depth",), "FuseNet-RGBbranch": ("rgb",)}


def batch(count: int = 3, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {name: torch.rand(count, *shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}


def network(name: str) -> nn.Module:
    """Small, with maps that are not all positive: a decoder that mixed its rows up would show."""
    torch.manual_seed(0)
    module = build(name, CLASSES, width=WIDTH).double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.3)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            nn.init.uniform_(layer.running_var, 0.05, 0.2)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return module


@pytest.mark.parametrize("mode", ["independent", "cumulative"])
@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("FuseNet-I", ("after_fusion_identity", "CBR5_RGBD_DEC")),
        ("FuseNet-I", ("CBR2_DEPTH_ENC", "CBR3_RGBD_DEC")),
        ("FuseNet-I", ("CBR2_RGB_ENC", "after_fusion_identity")),
        ("FuseNet-Dbranch", ("CBR5_DEPTH_ENC", "CBR5_D_DEC")),
        ("FuseNet-RGBbranch", ("CBR5_RGB_ENC", "CBR5_RGB_DEC")),
    ],
)
@torch.no_grad()
def test_one_forward_for_all_variants(name: str, taps: tuple[str, ...], mode: str) -> None:
    inputs = batch()
    module = network(name)
    masks = masks_for(module, inputs, SEEN[name], taps)
    ensemble = Ensemble([Teacher(name, module, SEEN[name], taps)], [masks], mode).eval()
    together = ensemble(inputs)
    assert ensemble.shared == {0: True}
    ensemble.shared[0] = False
    separate = ensemble(inputs)
    assert together.shape == (3, 2, CLASSES, 32, 64)
    assert float((together - separate).abs().max()) <= 1e-12 * max(1.0, float(separate.abs().max()))
    plain = module(*(inputs[m] for m in SEEN[name]))
    for member in range(2):
        assert float((together[:, member] - plain).abs().max()) > 1e-3  # the masks do something


def test_tiled_repeats_whole_copies() -> None:
    earlier = torch.arange(6).view(3, 2)
    assert tiled(earlier, torch.zeros(3, 7)) is earlier
    assert tiled(earlier, torch.zeros(1, 7)) is earlier
    assert torch.equal(tiled(earlier, torch.zeros(6, 7)), torch.cat([earlier, earlier]))


@torch.no_grad()
def test_sizes_that_pools_do_not_divide() -> None:
    inputs = batch(2, {"rgb": (3, 45, 67), "depth": (1, 45, 67)})
    for name, seen in SEEN.items():
        assert network(name)(*(inputs[m] for m in seen)).shape == (2, CLASSES, 45, 67)


@torch.no_grad()
def test_channels_last_gives_the_same() -> None:
    inputs, module = batch(), network("FuseNet-I")
    plain = module(*inputs.values())
    turned = module.to(memory_format=torch.channels_last)(
        *(x.contiguous(memory_format=torch.channels_last) for x in inputs.values())
    )
    torch.testing.assert_close(turned, plain, rtol=1e-10, atol=1e-10)


def test_every_parameter_learns_under_autocast() -> None:
    torch.manual_seed(0)
    module = build("FuseNet-I", CLASSES, width=WIDTH)
    inputs = {name: x.float() for name, x in batch().items()}
    with torch.autocast("cpu", torch.bfloat16):
        module(*inputs.values()).float().square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_new_layers_start_small_and_dropout_is_a_setting() -> None:
    torch.manual_seed(0)
    module = build("FuseNet-I", CLASSES, width=16)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 4 and "_DEC" in name:
            receptive = parameter[0, 0].numel()
            wanted = 0.02 * (2 / (receptive * (parameter.shape[0] + parameter.shape[1]))) ** 0.5
            assert abs(float(parameter.detach().std()) / wanted - 1) < 0.2, name
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert not layer.bias.any(), name
    inputs = [x.float() for x in batch().values()]
    module.train()
    assert not torch.equal(module(*inputs), module(*inputs))
    dry = build("FuseNet-I", CLASSES, width=WIDTH, dropout=0.0).train()
    assert torch.equal(dry(*inputs), dry(*inputs))


def vgg(norms: bool, width: int = WIDTH) -> dict[str, Tensor]:
    """A state dict as torchvision's vgg16 (or vgg16_bn) has it: layer numbers count ReLUs and pools too."""
    g = torch.Generator().manual_seed(7)
    state, number, channels = {"classifier.0.weight": torch.zeros(2, 2)}, 0, 3
    for units, convolutions in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(convolutions):
            out = units * width
            state[f"features.{number}.weight"] = torch.randn(out, channels, 3, 3, generator=g)
            state[f"features.{number}.bias"] = torch.randn(out, generator=g)
            if norms:
                for key in ("weight", "bias", "running_mean", "running_var"):
                    state[f"features.{number + 1}.{key}"] = torch.rand(out, generator=g)
                state[f"features.{number + 1}.num_batches_tracked"] = torch.tensor(9)
            number, channels = number + 2 + norms, out
        number += 1
    return state


def test_layer_numbers_are_those_of_torchvision() -> None:
    plain = [int(k.split(".")[1]) for k, v in vgg(False).items() if k.startswith("features") and v.dim() == 4]
    assert plain == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    normed = [int(k.split(".")[1]) for k, v in vgg(True).items() if k.startswith("features") and v.dim() == 4]
    assert normed == [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_imagenet_start(tmp_path: Path, norms: bool, ending: str) -> None:
    state, file = vgg(norms), tmp_path / f"vgg.{ending}"
    torch.save(state, file) if ending == "pth" else save_file(state, file)
    found = build("FuseNet-I", CLASSES, width=WIDTH, imagenet=str(file)).state_dict()
    assert torch.equal(found["CBR1_RGB_ENC.0.weight"], state["features.0.weight"])
    assert torch.equal(found["CBR1_DEPTH_ENC.0.weight"], state["features.0.weight"].mean(1, keepdim=True))
    assert torch.equal(found["CBR1_DEPTH_ENC.0.bias"], state["features.0.bias"])
    last = "features.40" if norms else "features.28"
    for encoder in ("RGB_ENC", "DEPTH_ENC"):
        assert torch.equal(found[f"CBR5_{encoder}.6.weight"], state[f"{last}.weight"])
        assert torch.equal(found[f"CBR5_{encoder}.6.bias"], state[f"{last}.bias"])
        for key, plain in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            value = found[f"CBR5_{encoder}.7.{key}"]
            assert torch.equal(value, state[f"features.41.{key}"] if norms else torch.full_like(value, plain))
        assert int(found[f"CBR5_{encoder}.7.num_batches_tracked"]) == 0


def test_imagenet_files_that_do_not_fit(tmp_path: Path) -> None:
    def refused(state: object, *words: str, width: int = WIDTH) -> None:
        file = tmp_path / "vgg.pth"
        torch.save(state, file)
        with pytest.raises(ConfigError) as caught:
            build("FuseNet-RGBbranch", CLASSES, width=width, imagenet=str(file))
        message = str(caught.value)
        assert "\n" not in message
        for word in ("imagenet", *words):
            assert word in message

    whole = vgg(True)
    refused(whole, "convolution 1", "width", width=2 * WIDTH)
    refused({k: v for k, v in whole.items() if k != "features.40.weight"}, "12 convolutions", "13")
    refused({k: v for k, v in whole.items() if k != "features.41.running_var"}, "running_var", "convolution 13")
    refused({k: v for k, v in whole.items() if k != "features.3.bias"}, "bias of convolution 2")
    refused({"conv1.weight": torch.zeros(2)}, "0 convolutions")
    refused([1, 2], "no plain state dict")
    refused(nn.Linear(1, 1), "could run code")
    with pytest.raises(ConfigError, match="can't be read"):
        build("FuseNet-RGBbranch", CLASSES, imagenet=str(tmp_path / "absent.pth"))


def test_an_exported_student_needs_no_start(tmp_path: Path) -> None:
    recipe = load("nyu-depth-v2", ["models.rgb.student.options={width: 8, imagenet: /gone/vgg16.pth}"])
    maker = Material(recipe).maker
    assert {name: maker[name] for name in ("backbone", "options", "hf")} == {
        "backbone": "FuseNet-RGBbranch",
        "options": {"width": 8},
        "hf": None,
    }
