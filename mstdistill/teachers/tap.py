"""Taps: named submodules of a teacher whose output a mask module reweights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from ..data.given_logits import view_of
from ..data.present import see
from ..data.view import modality_of
from ..errors import ConfigError, nearest
from .given import Given
from .output import logits_of, named_place, note_place


@dataclass
class Teacher:
    """A network that teaches.

    Attributes:
        name: how recipes and tables call it.
        module: maps its modalities' tensors, given in order, to logits [B, C] or [B, C, H, W].
        modalities: what it sees: names of a batch's tensors.
        taps: submodules whose outputs get a mask each; none: the teacher itself joins the mixture, unmasked.
        frozen: ready-trained: takes part in stage 1 as a reference only.
        output: where its logits are in what the module returns (an index, a key or an attribute; several joined by
            dots), where several of its tensors could be they.
        missing: an instance that lacks one of its modalities: "need", it can't see it; "zero", zeros stand there.
        modality_dropout: with "zero", the chance that a modality is hidden from it in training, never all of them.

    Raises:
        ConfigError: `module` is no module, `output` neither a name nor an index, or `missing` no such word.
    """

    name: str
    module: nn.Module
    modalities: tuple[str, ...]
    taps: tuple[str, ...] = ()
    frozen: bool = False
    output: str | int | None = None
    missing: str = "need"
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        # a single name is easily written without its tuple
        self.modalities = (self.modalities,) if isinstance(self.modalities, str) else tuple(self.modalities)
        self.taps = (self.taps,) if isinstance(self.taps, str) else tuple(self.taps)
        check_module(self.module, f"teacher {self.name!r}")
        if self.missing not in ("need", "zero"):
            raise ConfigError(f"teacher {self.name!r}: missing={self.missing!r}; it must be need or zero")
        if not 0 <= self.modality_dropout < 1 or (self.modality_dropout and self.missing == "need"):
            raise ConfigError(f"teacher {self.name!r}: modality_dropout={self.modality_dropout} must be at least 0, "
                              "below 1, and goes with missing zero")  # fmt: skip
        if self.output is not None:
            note_place(self.module, named_place(self.output))

    @classmethod
    def from_logits(cls, name: str, file: str, key: str = "key") -> Teacher:
        """A teacher that is a file of logits and no network.

        Args:
            file: .npz or a table, whose rows have keys; .safetensors or .npy, by the order of the training data's rows.
            key: the file's column of keys, which are those of the data's `data.key`.
        """
        return cls(name, Given(str(file), key), (view_of(name),), frozen=True)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch of named modalities."""
        return call(self.module, inputs, self.modalities)

    def sees(self, present: Mapping[str, Tensor]) -> Tensor | None:
        """[B] which instances it can see, by what they have; None: all."""
        return see(present, self.modalities, some=self.missing == "zero")

    def kind(self, target: str) -> str:
        """ "multimodal" if it sees the target modality, else "crossmodal"."""
        seen = {modality_of(view) for view in self.modalities}
        return "multimodal" if modality_of(target) in seen else "crossmodal"


def call(module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """The logits of a network run on its modalities, in order; see `output` for what is no plain tensor."""
    output = module(*[inputs[name] for name in modalities])
    logits = output if isinstance(output, Tensor) else logits_of(module, output)
    # what was made under inference_mode takes no part in a loss
    return logits.clone() if logits.is_inference() and not torch.is_inference_mode_enabled() else logits


def check_module(module: object, owner: str) -> None:
    """What people give as a network must be one.

    Raises:
        ConfigError: it isn't.
    """
    if isinstance(module, type):
        raise ConfigError(f"{owner} is the class {module.__name__}; give a network made of it: {module.__name__}(...)")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{owner} is a {type(module).__name__}; a torch.nn.Module is wanted")


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode and no gradients."""
    for parameter in module.parameters():  # scripted modules have no `requires_grad_`
        parameter.requires_grad_(False)
    return module.eval()


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
    """The feature in a submodule's output: the tensor itself, or the first one of a tuple, mapping or dataclass."""
    if isinstance(output, Tensor):
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        output = tuple(getattr(output, field.name) for field in dataclasses.fields(output))
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
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = [field.name for field in dataclasses.fields(output)]
        first = next(name for name in fields if isinstance(getattr(output, name), Tensor))
        return dataclasses.replace(output, **{first: feature})
    position = next(i for i, part in enumerate(output) if isinstance(part, Tensor))
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[position]: feature})
    return type(output)((*output[:position], feature, *output[position + 1 :]))


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


def check_open(module: nn.Module, name: str, owner: str) -> None:
    """A submodule inside of compiled code can't be looked at.

    Raises:
        ConfigError: a part of the network that holds it is compiled.
    """
    known, steps = dict(module.named_modules()), name.split(".")
    for depth in range(len(steps)):
        part = known[".".join(steps[:depth])]
        inside = depth > 0 and part._compiled_call_impl is not None
        if inside or isinstance(part, (torch.jit.ScriptModule, OptimizedModule)):
            raise ConfigError(f"{owner}: tap {name!r} lies inside of compiled code ({type(part).__name__}), where "
                              "nothing can be masked or read; give the network uncompiled")  # fmt: skip


def discover(
    module: nn.Module, inputs: Mapping[str, Tensor], modalities: Sequence[str], taps: Sequence[str] | None, owner: str,
    calls: dict[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Shapes (without batch) of the tapped features, by one dry run on a real batch.

    Args:
        taps: names; None looks at every submodule that emits a floating-point tensor with a batch.
        calls: filled with how often each runs.

    Raises:
        ConfigError: unknown tap, one inside of compiled code, one that the forward pass doesn't reach, or one that
            gives features of several shapes.
    """
    wanted = [name for name, _ in module.named_modules() if name] if taps is None else list(taps)
    for tap in taps or ():
        find(module, tap, owner)
        check_open(module, tap, owner)
    shapes: dict[str, tuple[int, ...]] = {}
    calls = {} if calls is None else calls
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
                shape = tuple(feature.shape[1:])
                if taps is not None and shapes.get(name, shape) != shape:
                    raise ConfigError(f"{owner}: tap {name!r} runs several times and gives {list(shapes[name])} and "
                                      f"{list(shape)}, which no one mask fits; pick another")  # fmt: skip
                shapes[name] = shape
                calls[name] = calls.get(name, 0) + 1

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
