"""How a Hugging Face student lies in its folder: so that transformers loads it by itself, where it can.

"root": a classifier. The folder is one of transformers: its config, the weights under its own names, its processor.
"subfolder": a model without a head. It lies whole in `transformers/`, the head beside it in `model.safetensors`.
"plain": one that transformers has no class for (an encoder alone, one of two towers): config and processor lie in
`transformers/`, all weights in `model.safetensors`; as do those of every student of older versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..files import write_tensors
from ..hub import fetching, quiet
from ..state import load_state, state_of
from ..weights import load_weights, read_state_dict
from .huggingface import ClassifierNet, HuggingFaceNet, TwoTowerNet

# Where config and processor lie, unless the whole folder is one of transformers.
TRANSFORMERS = "transformers"
WEIGHTS = "model.safetensors"
_PREFIX = "model."


def form_of(net: HuggingFaceNet) -> str:
    """How a network is saved: "root", "subfolder" or "plain"."""
    if isinstance(net, ClassifierNet):
        return "root"
    known: Any = net.model
    cut = isinstance(net, TwoTowerNet) or getattr(known.config, "is_encoder_decoder", False)
    return "plain" if cut else "subfolder"


def home_of(folder: Path, form: str | None) -> Path:
    """Where a saved network's transformers config and processor lie."""
    return folder if form == "root" else folder / TRANSFORMERS


def save_network(net: HuggingFaceNet, folder: Path) -> str:
    """Write weights, config and processor; how they lie, see above."""
    form = form_of(net)
    home = home_of(folder, form)
    if form == "plain":
        net.save_files(home)
        write_tensors(folder / WEIGHTS, state_of(net), {"format": "pt"})
        return form
    model: Any = net.model
    with quiet():
        # one file: its name is known then
        model.save_pretrained(home, max_shard_size="1000GB")
        net.save_files(home)
    if form == "subfolder":
        head = {name: x for name, x in state_of(net).items() if not name.startswith(_PREFIX)}
        write_tensors(folder / WEIGHTS, head, {"format": "pt"})
    return form


def load_network(net: HuggingFaceNet, folder: Path, form: str | None) -> None:
    """Put a network where `save_network` found it; `form` None: of an older version.

    Raises:
        ConfigError: unreadable weights, or those of another network.
    """
    if form not in ("root", "subfolder"):
        load_weights(net, str(folder / WEIGHTS), "student")
        return
    home = home_of(folder, form)
    state = {f"{_PREFIX}{name}": x for name, x in _own_weights(net.model, home).items()}
    if form == "subfolder":
        state |= read_state_dict(folder / WEIGHTS, "student")
    wanted = state_of(net)
    for name in wanted:
        if name not in state or state[name].shape != wanted[name].shape:
            raise ConfigError(f"student: weights {folder} lack {name!r} as the network has it: of another network")
    load_state(net, {name: state[name] for name in wanted})


def _own_weights(model: Any, home: Path) -> dict[str, Any]:
    """A transformers model's tensors, by the names that it gives them itself: files may hold older ones."""
    # it would name the file within its own words
    if not (home / WEIGHTS).is_file():
        raise ConfigError(f"student: there is no {home / WEIGHTS}")
    with fetching("student", str(home), "weights"):
        loaded, info = type(model).from_pretrained(
            home, config=model.config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    known = set(model.state_dict())
    for name in sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        if name in known or name in info["unexpected_keys"]:
            raise ConfigError(f"student: {name!r} doesn't fit in {home / WEIGHTS}: weights of another network")
    found: dict[str, Any] = loaded.state_dict()
    return found
