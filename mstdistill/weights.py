"""Ready-trained weights from a file: safetensors, or a plain state dict saved by torch."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import ConfigError
from .state import is_extra, load_state, state_of

# where training scripts put a state dict among other things
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(module: nn.Module, path: str, owner: str) -> None:
    """Load a file's tensors into a network, names and shapes exactly.

    Raises:
        ConfigError: unreadable file, or tensors that don't fit; the message names the first.
    """
    fit_state(module, read_state_dict(path, owner), path, owner)


def read_state_dict(path: str | Path, owner: str) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a state dict saved by torch.

    A state dict under "state_dict", "model_state_dict" or "model" is unwrapped, DataParallel's prefix taken off.

    Args:
        owner: who asks, for messages.

    Raises:
        ConfigError: unreadable, no state dict, or a pickle that would run code.
    """
    file = Path(path).expanduser()
    try:
        found: Any = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except Exception as error:  # a damaged pickle can fail in any way
        if isinstance(error, pickle.UnpicklingError):
            raise ConfigError(f"{owner}: {path} {_why_not(error)}") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise ConfigError(f"{owner}: {path} can't be read ({reason})") from None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):  # fmt: skip
        raise ConfigError(f"{owner}: {path} holds no plain state dict")
    prefix = "module."
    cut = len(prefix) if all(name.startswith(prefix) for name in found) else 0
    return {name[cut:]: value for name, value in found.items()}


def _unpickled(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols: they load, or the error says why not
        return torch.load(file, map_location="cpu", weights_only=True)


def _why_not(error: pickle.UnpicklingError) -> str:
    if "nsupported" in str(error) or "GLOBAL" in str(error):
        return (
            "holds pickled objects, which could run code on loading; it must be a plain state dict: "
            "torch.save(model.state_dict(), ...)"
        )
    return "is no file saved by torch, or a damaged one"


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A state dict's entries of a submodule, under the submodule's own names."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def fit_state(module: nn.Module, state: Mapping[str, torch.Tensor], path: str, owner: str) -> None:
    """Load tensors that came from a file into a network; see `load_weights`."""
    own = state_of(module, owner)
    for name in own:
        if name not in state:
            raise ConfigError(f"{owner}: weights {path} lack {name!r}: weights of another network")
        if state[name].shape != own[name].shape and not is_extra(name):
            raise ConfigError(
                f"{owner}: {name!r} has shape {list(state[name].shape)} in {path}, the network {list(own[name].shape)}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ConfigError(f"{owner}: weights {path} hold {extra[0]!r}, which the network doesn't have")
    load_state(module, state)
