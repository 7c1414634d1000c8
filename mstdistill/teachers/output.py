"""Where a network's logits are in what it returns: a tensor, or something that holds tensors.

`.logits` and the key "logits" are known, and a tensor alone is the logits. Else a place is settled before anything
trains, and noted on the network (copies keep it); nothing is guessed between two tensors that could both be the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError

Place = tuple[str | int, ...]

_NOTE, _LAYOUT = "_logits_at", "_logits_among"


def note_place(module: nn.Module, place: Place, layout: tuple[Place, ...] | None = None) -> None:
    """Keep where a network's logits are.

    Args:
        layout: of the output in which they were found; None: people named the place.
    """
    module.__dict__[_NOTE], module.__dict__[_LAYOUT] = place, layout


def noted_place(module: nn.Module) -> Place | None:
    """Where a network's logits are, if that was settled."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    return getattr(module, _NOTE, None)


def as_noted(copied: nn.Module, module: nn.Module) -> None:
    """Take over what was noted on a network after it was copied."""
    place = noted_place(module)
    if place is not None:
        note_place(copied, place, getattr(module, _LAYOUT, None))


def named_place(name: str | int) -> Place:
    """A place as people write it: an index, a key or attribute, or several joined by dots.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(name, int) and not isinstance(name, bool):
        return (name,)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"output {name!r}: where the logits are is an index (1), a name ('logits') or several joined "
                          "by dots ('heads.1')")  # fmt: skip
    return tuple(int(word) if word.lstrip("-").isdigit() else word for word in name.split("."))


def logits_of(module: nn.Module, output: Any) -> Tensor:
    """The logits in what a network returned.

    Raises:
        ConfigError: nothing says where they are.
    """
    place = noted_place(module)
    found = _usual(output) if place is None else _taken(output, place)
    if not isinstance(found, Tensor):
        where = "" if place is None else f" at {_shown(place)}"
        raise ConfigError(f"{type(module).__name__} returns {described(output)}: no logits{where}")
    return found


def candidates(output: Any, rows: int) -> list[tuple[Place | None, Tensor]]:
    """What could be the logits of so many instances: tensors and their places; one alone where there is no doubt.

    A place of None: it needs no note.
    """
    if isinstance(output, Tensor):
        return [(None, output)]
    known = _usual(output)
    if isinstance(known, Tensor):
        return [(None, known)]
    return [(place, x) for place, x in _tensors(output)
            if x.is_floating_point() and x.dim() in (2, 4) and x.shape[0] == rows]  # fmt: skip


def settle(module: nn.Module, output: Any, rows: int, num_classes: int, owner: str, option: str) -> Tensor:
    """The logits in a network's output; where they are is noted on the network.

    A place that was found before holds for outputs with tensors at the same places, and for others where nothing else
    could be the logits.

    Args:
        option: how people name the place.

    Raises:
        ConfigError: no tensor, or several, could be the logits.
    """
    if isinstance(output, Tensor):
        return output
    before, known = noted_place(module), getattr(module, _LAYOUT, None)
    if before is not None and known is None:
        return chosen(module, output, owner)
    layout = tuple(place for place, _ in _tensors(output))
    found = [(place, x) for place, x in candidates(output, rows) if place is None or x.shape[1] == num_classes]
    if layout == known and before in [place for place, _ in found]:
        return chosen(module, output, owner)
    if len(found) != 1:
        raise ConfigError(
            f"{owner} returns {described(output)}; {'several' if found else 'none'} could be logits of {num_classes} "
            f"classes; name the one: {option}"
        )
    place, logits = found[0]
    if before not in (None, place):
        raise ConfigError(f"{owner} returns {described(output)}, its logits at another place than in evaluation "
                          f"({_shown(before or ())}); let it return them at the same one")  # fmt: skip
    if place is not None:
        note_place(module, place, layout)
    return logits


def chosen(module: nn.Module, output: Any, owner: str) -> Tensor:
    """The tensor itself, or the one at the place that was named.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    place = noted_place(module)
    assert place is not None
    found = _taken(output, place)
    if not isinstance(found, Tensor):
        raise ConfigError(f"{owner} returns {described(output)}; there is no tensor at {_shown(place)}")
    return found


def described(output: Any) -> str:
    """What a network returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    parts = [f"{_shown(place)} {list(x.shape)}" for place, x in _tensors(output)]
    shown = ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
    return f"a {type(output).__name__} of {shown}" if parts else f"a {type(output).__name__} without tensors"


def _usual(output: Any) -> Any:
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", None)


def _taken(output: Any, place: Place) -> Any:
    try:
        for step in place:
            inside = isinstance(step, int) or isinstance(output, Mapping)
            output = output[step] if inside else getattr(output, str(step))
    except (LookupError, TypeError, AttributeError):
        return None
    return output


def _tensors(output: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(output, Tensor):
        yield place, output
        return
    parts: list[tuple[str | int, Any]] = []
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, (tuple, list)):
        parts = list(enumerate(output))
    elif dataclasses.is_dataclass(output):
        parts = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    for step, part in parts:
        yield from _tensors(part, (*place, step))


def _shown(place: Place) -> str:
    return ".".join(map(str, place))
