"""Features of a network by where they are: the output of a submodule, or what the last layer takes in.

Where a recipe names none, they are found: a dry run says in which order the linear and convolutional layers run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .tap import call, find, first_tensor, replace_first, uncompiled

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feature:
    """A place in a network.

    Attributes:
        layer: name of a submodule.
        incoming: what it takes in, instead of what it gives out.
    """

    layer: str
    incoming: bool = False

    def __str__(self) -> str:
        return f"input of {self.layer}" if self.incoming else self.layer


@contextmanager
def changed(module: nn.Module, changes: Sequence[tuple[Feature, Change]], owner: str) -> Iterator[None]:
    """Within the block each of these features goes through its function.

    Raises:
        ConfigError: no such submodule, or one without a tensor to change.
    """
    handles = []
    try:
        for feature, change in changes:
            place = find(module, feature.layer, owner)
            if feature.incoming:
                handles.append(place.register_forward_pre_hook(_incoming(change)))
            else:
                handles.append(place.register_forward_hook(_outgoing(change)))
        with uncompiled(module) if handles else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _incoming(change: Change) -> Callable[[nn.Module, Any], Any]:
    return lambda _, args: (change(args[0]), *args[1:])


def _outgoing(change: Change) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda _, __, output: replace_first(output, change(first_tensor(output)))


def read(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], features: Sequence[Feature], owner: str
) -> tuple[Tensor, list[Tensor]]:
    """Logits of a batch, and these features of it, as `plain` gives them.

    Raises:
        ConfigError: unknown submodule, or one that the forward pass doesn't reach.
    """
    found: dict[int, Tensor] = {}

    def note(number: int) -> Change:
        def keep(x: Tensor) -> Tensor:
            found[number] = plain(x, channel_axis(module, features[number], x))
            return x

        return keep

    with changed(module, [(feature, note(i)) for i, feature in enumerate(features)], owner):
        logits = call(module, inputs, modalities)
    for number, feature in enumerate(features):
        if number not in found:
            raise ConfigError(f"{owner}: {feature} isn't reached when the model runs; pick another tap")
    return logits, [found[number] for number in range(len(features))]


@torch.no_grad()
def shapes(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], features: Sequence[Feature], owner: str
) -> list[tuple[int, ...]]:
    """Shapes of these features without the batch, by a dry run in eval mode.

    Raises:
        ConfigError: a feature without a batch, or of a shape that no method takes.
    """
    was_training = module.training
    try:
        _, found = read(module.eval(), inputs, modalities, features, owner)
    finally:
        module.train(was_training)
    rows = next(iter(inputs.values())).shape[0]
    sizes = []
    for feature, x in zip(features, found, strict=True):
        if x.dim() not in (2, 4) or x.shape[0] != rows or not x.is_floating_point():
            raise ConfigError(f"{owner}: {feature} gives {list(x.shape)}, no feature of {rows} instances; pick another")
        sizes.append(tuple(x.shape[1:]))
    return sizes


def channel_axis(module: nn.Module, feature: Feature, x: Tensor) -> int:
    """Where a feature's channels are: tokens [B, S, d] have them last, everything else behind the batch."""
    tokens = x.dim() == 3 and not isinstance(module.get_submodule(feature.layer), nn.Conv1d)
    return 2 if tokens else 1


def plain(feature: Tensor, axis: int = 1) -> Tensor:
    """A feature as a vector [B, d] or a map [B, C, H, W].

    Tokens [B, S, d] become their mean over the sequence, as masks see them; sequences [B, C, L] maps of height 1; video
    [B, C, T, H, W] its mean over time; and a map of one position is a vector.

    Args:
        axis: of the channels.
    """
    if feature.dim() == 3:
        return feature.mean(dim=1) if axis == 2 else feature.unsqueeze(2)
    if feature.dim() == 5:
        feature = feature.mean(dim=2)
    if feature.dim() == 4 and feature.shape[2:] == (1, 1):
        return feature.flatten(1)
    return feature


def layers(module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], owner: str) -> list[str]:
    """Names of the linear and convolutional layers in the order in which they (last) run; the last one classifies.

    Raises:
        ConfigError: there is none.
    """
    ran: dict[str, None] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, __: Any) -> None:
            ran.pop(name, None)
            ran[name] = None

        return hook

    handles = [layer.register_forward_pre_hook(note(name))
               for name, layer in module.named_modules() if name and isinstance(layer, LAYERS)]  # fmt: skip
    was_training = module.training
    try:
        with torch.no_grad(), uncompiled(module):
            call(module.eval(), inputs, modalities)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    if not ran:
        raise ConfigError(f"{owner} has no linear or convolutional layer to find features by; name its taps")
    return list(ran)
