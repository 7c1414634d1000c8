"""Pretrained encoders for features: by hub name or from a local folder, frozen, on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, first_line


def load_encoder(name: str, option: str) -> nn.Module:
    """A transformers model in eval mode on the best device.

    Args:
        name: hub id or local folder.
        option: the command-line option that names it, for messages.

    Raises:
        ConfigError: not there, and the hub can't be reached.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: nn.Module = AutoModel.from_pretrained(name)
    except ImportError as error:
        raise ConfigError(f"{option} {name}: {first_line(error)}; pip install 'mstdistill[prepare]'") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{option} {name}: can't be loaded ({first_line(error)}); without a network, download that model's folder "
            f"(config.json and weights) and give its path with {option}"
        ) from None
    return model.requires_grad_(False).eval().to(device())


def load_tokenizer(name: str, option: str) -> Any:
    """The tokenizer that belongs to a text encoder; see `load_encoder`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"{option} {name}: its tokenizer can't be loaded ({first_line(error)}); put the tokenizer's files into the "
            "same folder"
        ) from None


def device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def image_maps(model: nn.Module, pixels: np.ndarray, rows: int = 32) -> Tensor:
    """Last feature maps [N, C, h, w] float32 of normalised pictures [N, 3, H, W]."""
    maps = []
    for start in range(0, len(pixels), rows):
        output = model(pixel_values=torch.from_numpy(pixels[start : start + rows]).to(device()))
        maps.append(output.last_hidden_state.float().cpu())
    found = torch.cat(maps)
    if found.dim() != 4:
        raise ConfigError(
            f"--image-encoder gives features {list(found.shape[1:])}, not a map [channels, height, width]: take a "
            "convolutional one (VGG, ResNet)"
        )
    return found


@torch.no_grad()
def pooled_images(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Pooled features [N, C] float32 of normalised pictures [N, 3, H, W]."""
    output = model(pixel_values=torch.from_numpy(pixels).to(device()))
    found = output.pooler_output if output.get("pooler_output") is not None else output.last_hidden_state
    found = found.flatten(2).mean(dim=2) if found.dim() == 4 else found
    pooled: np.ndarray = found.float().cpu().numpy()
    return pooled


@torch.no_grad()
def pooled_texts(model: nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray:
    """Pooler outputs [N, C] float32 of texts, cut at `max_length` tokens."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    output = model(**{name: x.to(device()) for name, x in tokens.items()})
    if output.get("pooler_output") is None:
        raise ConfigError("--text-encoder has no pooled output; take a BERT-like one, such as vinai/bertweet-base")
    pooled: np.ndarray = output.pooler_output.float().cpu().numpy()
    return pooled


class VGGish(nn.Module):
    """VGGish, AudioSet's network: log-mel patches [B, 96, 64] to embeddings [B, 128].

    Widths are read from the weights, so that any network of this form loads. Parameter names are those of the
    PyTorch port `torchvggish`: `features.N.*` and `embeddings.N.*`.
    """

    def __init__(self, widths: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            if i in (0, 1, 3, 5):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        inputs, dense = channels * 6 * 4, []
        for width in hidden:
            dense += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.embeddings = nn.Sequential(*dense)

    def forward(self, patches: Tensor) -> Tensor:
        maps = self.features(patches.unsqueeze(1))
        embedding: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # channels last, as it was trained
        return embedding


CONVOLUTIONS, LINEARS = (0, 3, 6, 8, 11, 13), (0, 2, 4)


def load_vggish(path: str) -> VGGish:
    """VGGish from a plain state dict (.pth or .safetensors).

    Raises:
        ConfigError: no such file, or other weights.
    """
    from ...weights import fit_state, read_state_dict

    owner = "--audio-encoder"
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"{owner} {path}: no such file; give VGGish's weights (torchvggish's vggish-10086976.pth)")
    state = {
        name: x for name, x in read_state_dict(path, owner).items() if name.startswith(("features.", "embeddings."))
    }
    try:
        widths = [state[f"features.{i}.weight"].shape[0] for i in CONVOLUTIONS]
        hidden = [state[f"embeddings.{i}.weight"].shape[0] for i in LINEARS]
    except KeyError as error:
        raise ConfigError(f"{owner} {path}: lacks {error}: not VGGish's weights") from None
    model = VGGish(widths, hidden)
    fit_state(model, state, path, owner)
    return model.requires_grad_(False).eval().to(device())
