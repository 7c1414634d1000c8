"""What a network remembers, as tensors: weights, buffers, and the extra state of modules that have one.

An extra state (`get_extra_state`) is kept if it is a tensor or plain JSON, which becomes the bytes of its text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA

from .errors import ConfigError

_JSON = b"json:"


def state_of(module: nn.Module, owner: str = "the network") -> dict[str, Tensor]:
    """A module's state dict with all of it tensors; not copied.

    Raises:
        ConfigError: a part of it can't be kept.
    """
    state: dict[str, Any] = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            state[name] = _written(value, name, owner)
        elif value.is_quantized or value.is_sparse:
            raise ConfigError(f"{owner}: {name} is a quantised or sparse tensor, which a checkpoint can't hold; give "
                              "the network with plain weights")  # fmt: skip
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a module where `state_of` found it."""
    module.load_state_dict({name: _read(name, value) for name, value in state.items()})


def load_extra(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Of `load_state`, the extra states alone."""
    for name, value in state.items():
        if is_extra(name):
            module.get_submodule(name.rpartition(".")[0]).set_extra_state(_read(name, value))


def is_extra(name: str) -> bool:
    """Whether a name of a state dict is that of an extra state."""
    return name.rpartition(".")[2] == EXTRA


def _written(value: Any, name: str, owner: str) -> Tensor:
    try:
        text = json.dumps(value)
        same = json.loads(text) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ConfigError(
            f"{owner}: {name} of its state is a {type(value).__name__}; a checkpoint holds tensors, and of "
            "get_extra_state plain JSON (lists, no tuples); keep it as a tensor or JSON, or leave it out of the state"
        )
    return torch.frombuffer(bytearray(_JSON + text.encode()), dtype=torch.uint8)


def _read(name: str, value: Tensor) -> Any:
    if not is_extra(name) or value.dtype != torch.uint8 or value.dim() != 1:
        return value
    content = bytes(value.cpu().tolist())
    return json.loads(content.removeprefix(_JSON)) if content.startswith(_JSON) else value
