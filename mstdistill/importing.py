"""Others' checkpoints: state dicts saved by torch, read without running any code, made into safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from .backbones.registry import build
from .errors import ConfigError
from .files import write_tensors
from .weights import read_state_dict


@dataclass(frozen=True)
class Imported:
    """What `import_state_dict` wrote: how many tensors and parameters (buffers left out), for how many classes."""

    tensors: int
    parameters: int
    num_classes: int


def import_state_dict(
    checkpoint: Path, backbone: str, num_classes: int | None, options: Mapping[str, Any], out: Path, bgr: bool = False
) -> Imported:
    """Check a checkpoint against a backbone, names and shapes exactly, and write it as safetensors, atomically.

    Args:
        num_classes: None takes it from the shape of the checkpoint's classifier.
        bgr: it was trained on pictures in BGR order: what its first layer takes is turned, so that it sees RGB alike.

    Raises:
        ConfigError: unreadable, not this backbone's, `out` can't be a new safetensors file, or `bgr` for a network that
            sees no colours.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: weights are read back by their ending; call it {out.stem}.safetensors")
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another file")
    state = read_state_dict(checkpoint, "import")
    if num_classes is None:
        num_classes = _classes_of(state, backbone, options, checkpoint)
    own = _blank(backbone, num_classes, options)
    shapes = {name: value.shape for name, value in own.state_dict().items()}
    for name, shape in shapes.items():
        if name not in state:
            raise ConfigError(f"import: {checkpoint} lacks {name!r}: not a {backbone}, or one of other options")
        if state[name].shape != shape:
            raise ConfigError(
                f"import: {name!r} has shape {list(state[name].shape)} in {checkpoint}, {list(shape)} in {backbone} "
                f"with {num_classes} classes"
            )
    extra = sorted(set(state) - set(shapes))
    if extra:
        raise ConfigError(f"import: {checkpoint} holds {extra[0]!r}, which {backbone} doesn't have")
    state = {name: state[name] for name in shapes}
    if bgr:
        first = _colour_layer(own, backbone)
        state[first] = state[first].flip(1).contiguous()
    write_tensors(out, state, {"format": "pt", "backbone": backbone, **({"turned": "BGR to RGB"} if bgr else {})})
    return Imported(len(shapes), sum(p.numel() for p in own.parameters()), num_classes)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """A backbone's options from "key=value" words.

    Raises:
        ConfigError: a word without its key, or an unreadable value.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not key.isidentifier() or not equals:
            raise ConfigError(f"--option {pair!r}: give it as key=value, as in width=32")
    return options


def _colour_layer(network: nn.Module, backbone: str) -> str:
    """The weight [out, 3, ...] of the convolution that sees a picture's colours."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == 3:
            return f"{name}.weight"
    raise ConfigError(f"--bgr: {backbone} has no first layer that sees three colours; leave it out")


def _blank(backbone: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network without storage: names and shapes only."""
    with torch.device("meta"):
        return build(backbone, num_classes, **options)


def _classes_of(state: Mapping[str, Tensor], backbone: str, options: Mapping[str, Any], checkpoint: Path) -> int:
    """The number of classes, read where the network's shapes depend on it."""
    two, three = (_blank(backbone, count, options).state_dict() for count in (2, 3))
    for name, value in two.items():
        for dimension, (a, b) in enumerate(zip(value.shape, three[name].shape, strict=True)):
            if (a, b) == (2, 3) and name in state and state[name].dim() == value.dim():
                return state[name].shape[dimension]
    raise ConfigError(f"import: {checkpoint} lacks the classifier of a {backbone}; is it another network's?")
