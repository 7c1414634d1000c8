"""FuseNet-RGBbranch, FuseNet-Dbranch and FuseNet-I, the segmentation networks of NYU-Depth-V2 (paper).

VGG-16 encoders with batch norm, and a mirrored decoder that unpools with the encoder's pooling indices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..weights import read_state_dict
from .registry import register

BLOCKS = (1, 2, 3, 4, 5)
# output channels of each convolution, in units of the base width
_ENCODER = {1: (1, 1), 2: (2, 2), 3: (4, 4, 4), 4: (8, 8, 8), 5: (8, 8, 8)}
_DECODER = {5: (8, 8, 8), 4: (8, 8, 4), 3: (4, 4, 2), 2: (2, 1)}
# dropout follows these blocks' pools and these decoder blocks
_DROPPED = (3, 4, 5)
# where a map was pooled: the indices of its maxima, and its size before
Skip = tuple[Tensor, torch.Size]


def tiled(earlier: Tensor, like: Tensor) -> Tensor:
    """`earlier` [B, ...], repeated where the batch of `like` [k*B, ...] has grown since.

    A network may run with its batch grown to k whole copies at some submodule, each copy changed in its own way, one
    after the other: what joins a tensor from before that point must repeat its rows in the same order. Where `like` has
    the smaller batch, `earlier` stays as it is: it is the other's turn.
    """
    copies = like.shape[0] // earlier.shape[0]
    return earlier if copies <= 1 else earlier.repeat(copies, *(1,) * (earlier.dim() - 1))


def _layers(channels: int, widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return layers


class FuseNet(nn.Module):
    """Encoders and a decoder; which maps meet where is the subclass's.

    Args:
        encoders: name -> input channels.
        decoder: its name.
        width: base width; 64 is the paper's.
        dropout: probability, after the pools and decoder blocks 3, 4 and 5.
        imagenet: file with the state dict of torchvision's vgg16 or vgg16_bn, where encoders start.
    """

    def __init__(
        self, num_classes: int, encoders: dict[str, int], decoder: str, width: int, dropout: float, imagenet: str | None
    ) -> None:
        super().__init__()
        self.dropout, self._decoder = dropout, decoder
        for name, channels in encoders.items():
            for number in BLOCKS:
                widths = tuple(width * units for units in _ENCODER[number])
                self.add_module(f"CBR{number}_{name}", nn.Sequential(*_layers(channels, widths)))
                channels = widths[-1]
        for number in reversed(BLOCKS[1:]):
            widths = tuple(width * units for units in _DECODER[number])
            self.add_module(f"CBR{number}_{decoder}", nn.Sequential(*_layers(channels, widths)))
            channels = widths[-1]
        last = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.add_module(f"CBR1_{decoder}", nn.Sequential(*_layers(channels, (channels,)), last))
        self._initialise(encoders, imagenet)

    @torch.no_grad()
    def _initialise(self, encoders: dict[str, int], imagenet: str | None) -> None:
        for block, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                if self._decoder in block:
                    nn.init.xavier_normal_(module.weight, gain=0.02)
                else:  # as VGG itself starts
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if imagenet:
            start = _read_vgg(imagenet)
            for name in encoders:
                blocks = [self.get_submodule(f"CBR{number}_{name}") for number in BLOCKS]
                _start_encoder([layer for block in blocks for layer in block.children()], start, imagenet)

    def block(self, number: int, name: str, x: Tensor) -> Tensor:
        """Block `number` of the encoder or decoder `name`, on its maps [B, c, H, W]."""
        result: Tensor = self.get_submodule(f"CBR{number}_{name}")(x)
        return result

    def pool(self, number: int, x: Tensor) -> tuple[Tensor, Skip]:
        """The map after block `number` halved, and what unpooling needs."""
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        return self._drop(number, pooled), (indices, x.shape[-2:])

    def decode(self, x: Tensor, skips: list[Skip]) -> Tensor:
        """The last pooled map [B, 8 * width, h, w] to logits [B, C, H, W]."""
        for number in reversed(BLOCKS):
            indices, size = skips[number - 1]
            x = F.max_unpool2d(x, tiled(indices, x), [2, 2], output_size=list(size))
            x = self._drop(number, self.block(number, self._decoder, x))
        return x

    def _drop(self, number: int, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if number in _DROPPED else x


class _SingleNet(FuseNet):
    """One encoder, one decoder."""

    encoder: str

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for number in BLOCKS:
            x, skip = self.pool(number, self.block(number, self.encoder, x))
            skips.append(skip)
        return self.decode(x, skips)


@register("FuseNet-RGBbranch", ((3, 480, 640),), "VGG-16 encoder and decoder for colour images (paper, NYU-Depth-V2)")
class RGBNet(_SingleNet):
    """Images [B, 3, H, W] to logits [B, C, H, W]; H and W from 32 on. Options as in `FuseNet`."""

    encoder = "RGB_ENC"

    def __init__(
        self, num_classes: int = 41, width: int = 64, dropout: float = 0.4, imagenet: str | None = None
    ) -> None:
        super().__init__(num_classes, {"RGB_ENC": 3}, "RGB_DEC", width, dropout, imagenet)


@register("FuseNet-Dbranch", ((1, 480, 640),), "VGG-16 encoder and decoder for depth maps (paper, NYU-Depth-V2)")
class DepthNet(_SingleNet):
    """Depth maps [B, 1, H, W] to logits [B, C, H, W]; H and W from 32 on. Options as in `FuseNet`."""

    encoder = "DEPTH_ENC"

    def __init__(
        self, num_classes: int = 41, width: int = 64, dropout: float = 0.4, imagenet: str | None = None
    ) -> None:
        super().__init__(num_classes, {"DEPTH_ENC": 1}, "D_DEC", width, dropout, imagenet)


@register("FuseNet-I", ((3, 480, 640), (1, 480, 640)), "both encoders fused block by block (paper, NYU-Depth-V2)")
class FuseNetI(FuseNet):
    """Images [B, 3, H, W] and depth maps [B, 1, H, W] to logits [B, C, H, W]; H and W from 32 on.

    After each block the colour map becomes the mean of both. Options as in `FuseNet`."""

    def __init__(
        self, num_classes: int = 41, width: int = 64, dropout: float = 0.4, imagenet: str | None = None
    ) -> None:
        super().__init__(num_classes, {"RGB_ENC": 3, "DEPTH_ENC": 1}, "RGBD_DEC", width, dropout, imagenet)
        self.after_fusion_identity = nn.Identity()

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        skips = []
        for number in BLOCKS:
            rgb = self.block(number, "RGB_ENC", rgb)
            depth = self.block(number, "DEPTH_ENC", depth)
            rgb = (tiled(rgb, depth) + tiled(depth, rgb)) / 2
            rgb, skip = self.pool(number, rgb)
            skips.append(skip)
            if number < BLOCKS[-1]:
                depth, _ = self.pool(number, depth)
        return self.decode(self.after_fusion_identity(rgb), skips)


# of one convolution: name -> tensor of itself, and of the batch norm behind it where the file has one
_Start = tuple[dict[str, Tensor], dict[str, Tensor]]
_CONVOLUTION, _NORM = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")


def _read_vgg(path: str) -> list[_Start]:
    """The convolutions of a torchvision VGG-16 in order, with their batch norms; its classifier is left out."""
    state = read_state_dict(path, "imagenet")
    parts: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        words = name.split(".")
        if len(words) == 3 and words[0] == "features" and words[1].isdecimal():
            parts.setdefault(int(words[1]), {})[words[2]] = value
    convolutions = [n for n in sorted(parts) if "weight" in parts[n] and parts[n]["weight"].dim() == 4]
    wanted = sum(len(units) for units in _ENCODER.values())
    if len(convolutions) != wanted:
        raise ConfigError(
            f"imagenet: {path} holds {len(convolutions)} convolutions features.N.weight, VGG-16 has {wanted}"
        )
    return [(parts[n], parts.get(n + 1, {}) if n + 1 not in convolutions else {}) for n in convolutions]


def _start_encoder(layers: list[nn.Module], start: list[_Start], path: str) -> None:
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    for number, (conv, norm, (own, behind)) in enumerate(zip(convolutions, norms, start, strict=True), start=1):
        if conv.in_channels == 1 and own["weight"].shape[1] == 3:
            own = {**own, "weight": own["weight"].mean(dim=1, keepdim=True)}
        _copy(conv, own, _CONVOLUTION, path, f"convolution {number}")
        if behind:
            _copy(norm, behind, _NORM, path, f"the batch norm of convolution {number}")


def _copy(layer: nn.Module, values: dict[str, Tensor], names: tuple[str, ...], path: str, what: str) -> None:
    own = layer.state_dict()
    for name in names:
        if name not in values:
            raise ConfigError(f"imagenet: {path} lacks the {name} of {what}")
        if values[name].shape != own[name].shape:
            raise ConfigError(
                f"imagenet: {path} has {what}'s {name} as {list(values[name].shape)}, the network "
                f"{list(own[name].shape)}; is its width the file's?"
            )
        own[name].copy_(values[name])
