"""Taps: named submodules of a teacher whose output a mask module reweights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.view import modality_of
from ..errors import ConfigError, nearest


@dataclass
class Teacher:
    """A network that teaches.

    Attributes:
        name: how recipes and tables call it.
        module: maps its modalities' tensors, given in order, to logits [B, C] or [B, C, H, W].
        modalities: what it sees: names of a batch's tensors.
        taps: submodules whose outputs get a mask each; none: the teacher itself joins the mixture, unmasked.
        frozen: ready-trained: takes part in stage 1 as a reference only.
    """

    name: str
    module: nn.Module
    modalities: tuple[str, ...]
    taps: tuple[str, ...] = ()
    frozen: bool = False

    def __post_init__(self) -> None:
        # a single name is easily written without its tuple
        self.modalities = (self.modalities,) if isinstance(self.modalities, str) else tuple(self.modalities)
        self.taps = (self.taps,) if isinstance(self.taps, str) else tuple(self.taps)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch of named modalities."""
        return call(self.module, inputs, self.modalities)

    def kind(self, target: str) -> str:
        """ "multimodal" if it sees the target modality, else "crossmodal"."""
        seen = {modality_of(view) for view in self.modalities}
        return "multimodal" if modality_of(target) in seen else "crossmodal"


def call(module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """Run a network on its modalities, in order; outputs with a `.logits` (transformers) give that."""
    output = module(*[inputs[name] for name in modalities])
    logits: Tensor = output.logits if hasattr(output, "logits") else output
    return logits


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode and no gradients."""
    return module.eval().requires_grad_(False)


def find(module: nn.Module, tap: str, owner: str = "model") -> nn.Module:
    """The submodule of this name.

    Raises:
        ConfigError: no such submodule; the message lists the nearest names.
    """
    known = dict(module.named_modules())
    known.pop("", None)
    if tap not in known:
        raise ConfigError(f"{owner} has no tap {tap!r}; {nearest(tap, known)}")
    return known[tap]


def first_tensor(output: Any) -> Tensor:
    """The feature in a submodule's output: the tensor itself, or the first one of a tuple or mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for part in output:
            if isinstance(part, Tensor):
                return part
    raise ConfigError(f"a tap's output must hold a tensor, not {type(output).__name__}; pick another tap")


def replace_first(output: Any, feature: Tensor) -> Any:
    """The same output with its feature replaced."""
    if isinstance(output, Tensor):
        return feature
    if isinstance(output, Mapping):
        changed: Any = type(output)(output)  # type: ignore[call-arg]
        for key, part in output.items():
            if isinstance(part, Tensor):
                changed[key] = feature
                return changed
    position = next(i for i, part in enumerate(output) if isinstance(part, Tensor))
    return (*output[:position], feature, *output[position + 1 :])


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Within the block the module runs as it is written: compiled code doesn't see hooks."""
    compiled = module._compiled_call_impl
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


@contextmanager
def hooked(module: nn.Module, taps: Mapping[str, Callable[[Tensor], Tensor]], owner: str) -> Iterator[None]:
    """Within the block, each tapped submodule's feature goes through its function."""
    handles = []
    try:
        for tap, change in taps.items():

            def hook(_: nn.Module, __: Any, output: Any, change: Callable[[Tensor], Tensor] = change) -> Any:
                return replace_first(output, change(first_tensor(output)))

            handles.append(find(module, tap, owner).register_forward_hook(hook))
        with uncompiled(module) if handles else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def discover(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], taps: Sequence[str] | None, owner: str
) -> dict[str, tuple[int, ...]]:
    """Shapes (without batch) of the tapped features, by one dry run on a real batch.

    Args:
        taps: names; None looks at every submodule that emits a floating-point tensor with a batch.

    Raises:
        ConfigError: unknown tap, or a tap that the forward pass doesn't reach.
    """
    wanted = [name for name, _ in module.named_modules() if name] if taps is None else list(taps)
    shapes: dict[str, tuple[int, ...]] = {}
    batch = next(iter(inputs.values())).shape[0]

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            try:
                feature = first_tensor(output)
            except ConfigError:
                if taps is not None:
                    raise
                return
            if feature.dim() >= 2 and feature.shape[0] == batch and feature.is_floating_point():
                shapes[name] = tuple(feature.shape[1:])

        return hook

    handles = [find(module, name, owner).register_forward_hook(note(name)) for name in wanted]
    was_training = module.training
    try:
        module.eval()
        with torch.no_grad(), uncompiled(module):
            call(module, inputs, modalities)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    for tap in taps or ():
        if tap not in shapes:
            raise ConfigError(f"{owner}: tap {tap!r} gives no feature with a batch when the model runs; pick another")
    return shapes
