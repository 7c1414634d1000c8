"""Grad-CAM (Selvaraju et al., ICCV 2017): where in a picture a network finds its evidence for a class.

Of a convolutional feature A [B, K, h, w] and the score y^c of class c (equations 1 and 2; Z = h w positions):

    alpha_k = 1/Z sum_ij dy^c / dA_kij,  map = ReLU(sum_k alpha_k A_k)

Of dense predictions the score is the sum over the pixels that are predicted as the class (Seg-Grad-CAM, Vinogradova et
al., AAAI 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..teachers.feature import LAYERS
from ..teachers.tap import call, first_tensor, hooked, uncompiled

_CONVOLUTIONS = tuple(layer for layer in LAYERS if layer is not nn.Linear)
# Where a feature's masks are: each tap with what is plugged in there, in order.
Changes = Sequence[tuple[str, Callable[[Tensor], Tensor]]]


@dataclass(frozen=True)
class Place:
    """A feature that has a Grad-CAM.

    Attributes:
        layer: name of the submodule whose output it is.
        size: height and width.
    """

    layer: str
    size: tuple[int, int]


def pictures(inputs: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """The inputs that are like pictures: floating-point tensors [B, 1 or 3, H, W] of more than one position."""
    return [name for name in names if (x := inputs[name]).dim() == 4 and x.is_floating_point() and x.shape[1] in (1, 3)
            and x.shape[2] * x.shape[3] > 1]  # fmt: skip


def class_score(logits: Tensor, classes: Tensor) -> Tensor:
    """Scores [B] of classes [B]: the logit; of dense logits [B, C, H, W] its sum where the class is predicted."""
    index = classes.view(-1, *(1,) * (logits.dim() - 1)).expand(-1, 1, *logits.shape[2:])
    score = logits.gather(1, index).squeeze(1)
    if logits.dim() > 2:
        score = (score * (logits.argmax(dim=1) == index.squeeze(1))).flatten(1).sum(dim=1)
    return score


def grad_cam(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    modalities: Sequence[str],
    layer: str,
    classes: Tensor,
    changes: Changes = (),
    owner: str = "model",
) -> tuple[Tensor, Tensor]:
    """Maps and logits of a batch.

    Args:
        module: in eval mode; its parameters get no gradients.
        modalities: the inputs that it takes, in order.
        layer: submodule with output [B, K, h, w].
        classes: [B] int64, the class that each map explains.
        changes: plugged into submodules on the way, such as masks; one at `layer` itself changes A.

    Returns:
        Maps [B, h, w], not negative, in the feature's dtype, and logits [B, C] or [B, C, H, W].

    Raises:
        ConfigError: the score doesn't depend on the layer's output.
    """
    kept: list[Tensor] = []

    def keep(feature: Tensor) -> Tensor:
        # what comes before has no part in dy/dA; a copy goes on, because what follows may work in place
        kept.append(feature.detach().requires_grad_())
        return kept[-1].clone()

    with torch.enable_grad(), ExitStack() as stack:
        for tap, change in changes:
            stack.enter_context(hooked(module, {tap: change}, owner))
        stack.enter_context(hooked(module, {layer: keep}, owner))  # last: sees what the masks have left
        logits = call(module, inputs, modalities)
        score = class_score(logits, classes).sum()  # instances don't mix in eval mode
        grad = torch.autograd.grad(score, kept[-1], allow_unused=True)[0] if kept and score.requires_grad else None
    if grad is None:
        raise ConfigError(f"{owner}: the class score doesn't depend on {layer!r}")
    feature = kept[-1].detach()
    return (grad.mean(dim=(2, 3), keepdim=True) * feature).sum(dim=1).relu(), logits.detach()


@torch.no_grad()
def places(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], classes: Tensor, owner: str = "model"
) -> dict[str, Place]:
    """For each picture that a network sees, the last convolutional feature that is a map of it.

    That is: behind a convolution, with positions, not the prediction itself, reached by the class score's gradient, and
    affected by this input and no other one, unless by pictures of the same size, which the network joins position by
    position (colour and depth). What affects what is found by exchanging inputs between instances.

    Args:
        inputs: a real batch of at least two different instances.
        classes: [B] int64, some class of each.

    Returns:
        By modality; without an entry where there is no such feature.
    """
    seen = pictures(inputs, modalities)
    features, logits = _features(module, inputs, modalities, owner)
    if logits.dim() > 2:  # a channel a class: a prediction of another size
        features = {layer: x for layer, x in features.items() if x.channels != logits.shape[1]}
    affected: dict[str, set[str]] = {layer: set() for layer in features}
    for name in modalities if seen else ():
        others, _ = _features(module, {**inputs, name: inputs[name].roll(1, dims=0)}, modalities, owner)
        for layer in affected:
            if layer in others and others[layer].differs(features[layer]):
                affected[layer].add(name)
    found = {}
    for name in seen:
        same = {other for other in seen if inputs[other].shape[2:] == inputs[name].shape[2:]}
        for layer in reversed([layer for layer, by in affected.items() if name in by and by <= same]):
            try:
                grad_cam(module, inputs, modalities, layer, classes, owner=owner)
            except ConfigError:
                continue
            found[name] = Place(layer, features[layer].size)
            break
    return found


@dataclass(frozen=True)
class _Trace:
    """What is kept of a feature [B, K, h, w]: enough to see whether it has changed, little beside its size."""

    mean: Tensor
    channels: int
    size: tuple[int, int]

    def differs(self, other: _Trace) -> bool:
        """By more than rounding."""
        scale = float(self.mean.abs().max())
        return not torch.allclose(self.mean, other.mean, rtol=1e-5, atol=1e-6 * scale)


def _features(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], owner: str
) -> tuple[dict[str, _Trace], Tensor]:
    """Maps from the first convolution on, in the order in which they are made, and the logits.

    A submodule that runs several times is left out: its hook wouldn't know which of its outputs is meant.
    """
    found: dict[str, _Trace] = {}
    runs: dict[str, int] = {}
    behind = False

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, _: Any, output: Any) -> None:
            nonlocal behind
            behind = behind or isinstance(layer, _CONVOLUTIONS)
            runs[name] = runs.get(name, 0) + 1
            try:
                x = first_tensor(output)
            except ConfigError:
                return
            if behind and x.dim() == 4 and x.is_floating_point() and x.shape[2] * x.shape[3] > 1:
                found[name] = _Trace(x.mean(dim=(2, 3)), x.shape[1], (int(x.shape[2]), int(x.shape[3])))

        return note

    handles = [layer.register_forward_hook(hook(name)) for name, layer in module.named_modules() if name]
    try:
        with uncompiled(module):
            logits = call(module, inputs, modalities)
    finally:
        for handle in handles:
            handle.remove()
    return {name: x for name, x in found.items() if runs[name] == 1 and len(x.mean) == len(logits)}, logits


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, h, w] bilinearly to [B, H, W], each divided by its greatest value; maps of nothing stay zero."""
    large = F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)
    return large / large.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(large.dtype).tiny)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation [B] of maps [B, H, W], pixel by pixel; NaN where one of them is the same everywhere."""
    a, b = (x.flatten(1).double() for x in (a, b))
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(dim=1) / lengths).clamp(-1.0, 1.0).where(lengths > 1e-9, torch.nan)
