"""What is tried with every network before the first step, so that one that can't train is refused in a line.

A network answers once in eval mode; a copy of it answers and takes a gradient in training mode, on as few instances as
the shortest batch of its stages holds. Nothing of a trial stays: neither in the network nor in the random state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import ranks
from ..engine.batch_norm import over_processes, take_any_batch
from ..engine.seeding import initialising, random_state, restore_random_state
from ..errors import ConfigError, first_line
from ..state import state_of
from ..teachers.output import as_noted, candidates, chosen, described, noted_place, settle
from ..teachers.tap import call, hooked

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Network:
    """The student or a teacher, as the trials see it.

    Attributes:
        owner: what people call it.
        module: itself.
        view: names of the tensors that it takes, in order.
        option: how people say where its logits are.
    """

    owner: str
    module: nn.Module
    view: tuple[str, ...]
    option: str

    @staticmethod
    def student(module: nn.Module, target: str) -> Network:
        return Network("student", module, (target,), 'distill(..., student_output="name or index")')

    @staticmethod
    def teacher(name: str, module: nn.Module, view: Sequence[str]) -> Network:
        return Network(f"teacher {name!r}", module, tuple(view), 'Teacher(..., output="name or index")')


def shortest(count: int, batch_size: int) -> int:
    """Instances of a process's shortest micro-batch of an epoch."""
    whole = batch_size * ranks.world_size()
    rest = count % whole
    return batch_size if not rest else max(rest // ranks.world_size(), 1)


def check_apart(networks: Sequence[Network]) -> None:
    """No network may hold a tensor of the student's: what one stage trains, another holds fixed.

    Raises:
        ConfigError: two are one module, or share a parameter or buffer; or one has weights without values.
    """
    for one in networks:
        if any(x.is_meta for x in _tensors_of(one.module)):
            raise ConfigError(f"{one.owner} has weights on the meta device, without values; load them first")
    for one, other in combinations(networks, 2):
        if "student" not in (one.owner, other.owner):
            continue
        if one.module is other.module:
            raise ConfigError(f"{one.owner} and {other.owner} are one module; give each a network of its own")
        shared = _shared(one.module, other.module)
        if shared is not None:
            raise ConfigError(f"{one.owner} and {other.owner} share {shared}; give each a network of its own, with "
                              "copy.deepcopy for the same start")  # fmt: skip


def check_teachers_apart(networks: Sequence[Network]) -> None:
    """As `check_apart`, for teachers that are trained one after the other.

    Raises:
        ConfigError: two share a parameter that learns.
    """
    for one, other in combinations(networks, 2):
        shared = _shared(one.module, other.module, learning=True)
        if shared is not None:
            raise ConfigError(f"{one.owner} and {other.owner} share {shared}, and each is trained alone; give each a "
                              "network of its own")  # fmt: skip


def _shared(one: nn.Module, other: nn.Module, learning: bool = False) -> str | None:
    def tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
        yield from ((name, p) for name, p in module.named_parameters() if p.requires_grad or not learning)
        yield from () if learning else module.named_buffers()

    theirs = {id(x) for _, x in tensors(other)}
    return next((name for name, x in tensors(one) if id(x) in theirs), None)


def check_state(network: Network) -> None:
    """All that a network remembers must fit into a checkpoint.

    Raises:
        ConfigError: something in its state is neither a tensor nor plain JSON.
    """
    state_of(network.module, network.owner)


def wake(network: Network, inputs: Inputs, seed: int) -> Any:
    """A network's first output in eval mode: lazy modules get their parameters here, from a named seed.

    Raises:
        ConfigError: it can't take the inputs, or changes them.
    """
    module, views = network.module, [inputs[name] for name in network.view]
    was_training, before = module.training, [x._version for x in views]
    try:
        with torch.no_grad():
            if any(is_lazy(p) for p in _tensors_of(module)):
                with initialising(seed, "lazy", network.owner):
                    output = module.eval()(*views)
                take_any_batch(module)
            else:
                output = module.eval()(*views)
    except Exception as error:  # of somebody else's code
        shapes = {name: list(x.shape) for name, x in inputs.items()}
        raise ConfigError(f"{network.owner} can't take {shapes}: {first_line(error)}") from None
    finally:
        module.train(was_training)
    if [x._version for x in views] != before:
        raise ConfigError(f"{network.owner} changes its input in place, which other networks see too; let it work on "
                          "a copy: x = x.clone()")  # fmt: skip
    return output


def _tensors_of(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def answer(network: Network, inputs: Inputs, num_classes: int, seed: int) -> Tensor:
    """A network's logits of a batch; where they are in what it returns is settled here.

    Raises:
        ConfigError: no logits of the task's classes, one row an instance.
    """
    output, rows = wake(network, inputs, seed), len(next(iter(inputs.values())))
    logits = settle(network.module, output, rows, num_classes, network.owner, network.option)
    _check_fit(logits, rows, num_classes, network.owner)
    return logits


def _check_fit(logits: Tensor, rows: int, num_classes: int, owner: str) -> None:
    if logits.layout is not torch.strided:
        raise ConfigError(f"{owner} gives sparse logits; give them dense, with .to_dense()")
    fits = logits.dim() in (2, 4) and logits.shape[0] == rows and logits.shape[1] == num_classes
    if not fits or not logits.is_floating_point():
        kind = "" if logits.is_floating_point() else f" of type {str(logits.dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"{owner} gives logits {list(logits.shape)}{kind}; the task has {num_classes} classes, so "
            f"[batch, {num_classes}] or [batch, {num_classes}, height, width] is wanted"
            + ("" if logits.is_floating_point() else ", in floating point")
            + (f", for a batch of {rows}" if logits.shape[:1] != (rows,) else "")
        )


def count_classes(student: Network, others: Sequence[Network], inputs: Inputs, label: Tensor, named: int,
                  seed: int) -> int:  # fmt: skip
    """The width of the student's logits.

    Where several of its tensors could be the logits, labels, named classes and the teachers' outputs say which width
    is possible.

    Args:
        label: of the same instances.
        named: how many classes have a name, or 0.

    Raises:
        ConfigError: the student can't take the inputs, or its logits aren't to be found.
    """
    rows = len(label)
    named = label.shape[1] if label.dim() == 2 else named  # of several classes at once: each has its own

    def widths(network: Network) -> set[int]:
        output = wake(network, {name: inputs[name] for name in network.view}, seed)
        return {x.shape[1] for _, x in candidates(output, rows) if x.dim() > 1}

    output = wake(student, {name: inputs[name] for name in student.view}, seed)
    if noted_place(student.module) is not None:
        possible = {chosen(student.module, output, student.owner).shape[1]}
    else:
        possible = {x.shape[1] for _, x in candidates(output, rows) if x.dim() in (2, 4)}
    if len(possible) > 1:
        possible = {width for width in possible if width > int(label.max()) and named in (0, width)}
    for other in others:
        if len(possible) > 1:
            possible &= widths(other)
    if len(possible) != 1:
        raise ConfigError(
            f"student returns {described(output)}; {'several' if possible else 'none'} could be logits, [batch, "
            "classes] or [batch, classes, height, width]"
            + ("" if isinstance(output, Tensor) else f"; name the one: {student.option}")
        )
    return possible.pop()


def learns(
    network: Network, inputs: Inputs, num_classes: int, autocast: Callable[[], AbstractContextManager[Any]], note: str
) -> set[str]:
    """Names of the parameters that a gradient of the logits reaches in training mode; a copy is tried.

    Where the device has no room for that, all that may learn: a stage's engine may need less.

    Args:
        note: of what batch it is, for messages.

    Raises:
        ConfigError: it can't be trained on such a batch.
    """
    before = random_state()
    module, undo = _to_be_tried(network.module)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    try:
        module.train()
        with torch.enable_grad(), over_processes(module):
            with autocast():
                logits = _in_training(network, module, inputs, num_classes, note)
            if not parameters or not logits.requires_grad:
                return set()
            found = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    except ConfigError:
        raise
    except torch.OutOfMemoryError:
        return set(parameters)
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"{network.owner} can't train on {note}: {first_line(error)}") from None
    finally:
        undo()
        restore_random_state(before)
    return {name for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _in_training(network: Network, module: nn.Module, inputs: Inputs, num_classes: int, note: str) -> Tensor:
    """The logits of the copy in training mode, where a network may return something else than in evaluation.

    Raises:
        ConfigError: they aren't to be found, or NaN.
    """
    output, owner = module(*[inputs[name] for name in network.view]), f"{network.owner} in training"
    rows = len(next(iter(inputs.values())))
    logits = settle(module, output, rows, num_classes, owner, network.option)
    _check_fit(logits, rows, num_classes, owner)
    as_noted(network.module, module)
    if bool(torch.isnan(logits.detach()).any()):
        raise ConfigError(f"{network.owner} gives NaN in training on {note}; choose another batch_size, or look at "
                          "what it computes over a batch")  # fmt: skip
    return logits


def _to_be_tried(module: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    """A copy; of a module that can't be copied itself, and how its buffers and its mode come back."""
    try:
        return copy.deepcopy(module), lambda: None
    except Exception:  # a tensor that is no leaf, a handle, whatever somebody keeps in it
        buffers = [(x, x.detach().clone()) for x in module.buffers()]
        was_training = module.training

    @torch.no_grad()
    def undo() -> None:
        module.train(was_training)
        for own, value in buffers:
            own.copy_(value)

    return module, undo


@torch.no_grad()
def check_numbers(network: Network, inputs: Inputs, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    """A network evaluates the shortest batch that an evaluation holds.

    Raises:
        ConfigError: it can't, or gives NaN.
    """
    was_training = network.module.training
    try:
        with autocast():
            logits = call(network.module.eval(), inputs, network.view)
    except Exception as error:
        rows = len(next(iter(inputs.values())))
        raise ConfigError(f"{network.owner} can't take a batch of {rows}, the shortest of an evaluation: "
                          f"{first_line(error)}; choose another batch_size") from None  # fmt: skip
    finally:
        network.module.train(was_training)
    if bool(torch.isnan(logits).any()):
        raise ConfigError(f"{network.owner} gives NaN before anything is trained; look at its weights and its start")


def check_taps(network: Network, taps: Sequence[str], inputs: Inputs) -> None:
    """A mask learns by a gradient from the logits back to its tap, through a network in eval mode.

    Raises:
        ConfigError: it doesn't get there.
    """
    module = network.module
    ones = {tap: torch.ones((), device=next(iter(inputs.values())).device, requires_grad=True) for tap in taps}

    def scaled(tap: str) -> Callable[[Tensor], Tensor]:
        return lambda feature: feature * ones[tap].to(feature.dtype)

    was_training, before = module.training, random_state()
    try:
        with torch.enable_grad(), hooked(module.eval(), {tap: scaled(tap) for tap in taps}, network.owner):
            logits = call(module, inputs, network.view)
            reached = (
                torch.autograd.grad(logits.sum(), list(ones.values()), allow_unused=True)
                if logits.requires_grad else [None] * len(ones)
            )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(f"{network.owner}: no gradient comes back through it ({first_line(error)})") from None
    finally:
        module.train(was_training)
        restore_random_state(before)
    for tap, gradient in zip(taps, reached, strict=True):
        if gradient is None:
            raise ConfigError(
                f"{network.owner}: no gradient comes from its logits to tap {tap!r} (a forward under no_grad, or a "
                "detached tensor), so a mask there can't learn; let gradients through, or name another tap, or none: "
                "the teacher then joins the mixture unmasked"
            )
