"""Ready-trained weights from a file: safetensors, or a plain state dict saved by torch."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .errors import ConfigError


def load_weights(module: nn.Module, path: str, owner: str) -> None:
    """Load a file's tensors into a network, names and shapes exactly.

    Raises:
        ConfigError: unreadable file, or tensors that don't fit; the message names the first.
    """
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(f"{owner}: weights {path} can't be read ({str(error).splitlines()[0][:100]})") from None
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise ConfigError(f"{owner}: weights {path} hold no plain state dict")
    own = module.state_dict()
    for name in own:
        if name not in state:
            raise ConfigError(f"{owner}: weights {path} lack {name!r}: weights of another network")
        if state[name].shape != own[name].shape:
            raise ConfigError(
                f"{owner}: {name!r} has shape {list(state[name].shape)} in {path}, the network {list(own[name].shape)}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ConfigError(f"{owner}: weights {path} hold {extra[0]!r}, which the network doesn't have")
    module.load_state_dict(state)
