"""What of a student's preprocessing is arithmetic on tensors: the first step of an exported graph.

Prepared data are stored as they were measured and scaled when they are read; a picture's processor resizes it and then
scales its pixels. A graph takes values as they are before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.huggingface import HuggingFaceNet
from ..data.decode.processors import Processing
from ..data.scale import Scale
from ..data.split import Split
from ..errors import DataError

# A constant picture and how far from it its pixels may be when a processor's scaling is undone.
_COLOUR, _NEAR = (10, 120, 250), 0.01


@dataclass(frozen=True)
class Intake:
    """From what a graph takes to what the student takes: (input - low) / spread.

    Attributes:
        low, spread: broadcast over [B, ...].
        dtype: of the input: uint8 for pixels, else float32.
    """

    low: Tensor
    spread: Tensor
    dtype: torch.dtype

    def raw(self, view: Tensor) -> Tensor:
        """The input that a view [B, ...] comes from."""
        values = view * self.spread + self.low
        return values.round().clamp(0, 255).to(torch.uint8) if self.dtype == torch.uint8 else values

    def view(self, raw: Tensor) -> Tensor:
        """The student's view [B, ...] of an input."""
        return Scale(self.low, self.spread)(raw)

    def facts(self) -> dict[str, Any]:
        """For config files; JSON."""
        return {"done": "(input - low) / spread", "low": self.low.flatten().tolist(),
                "spread": self.spread.flatten().tolist()}  # fmt: skip


class Scaled(nn.Module):
    """An intake's arithmetic as a part of a graph."""

    low: Tensor
    spread: Tensor

    def __init__(self, intake: Intake) -> None:
        super().__init__()
        self.register_buffer("low", intake.low.clone())
        self.register_buffer("spread", intake.spread.clone())

    def forward(self, raw: Tensor) -> Tensor:
        return (raw.float() - self.low) / self.spread


def find_intake(module: nn.Module, splits: Mapping[str, Split], view: str) -> Intake | None:
    """The arithmetic before a student; None: there is none, or its data aren't there to tell.

    Args:
        view: what the splits call the student's input.
    """
    for split in splits.values():
        scale = getattr(split, "scales", {}).get(view)
        stored = getattr(split, "stored", None)
        if scale is not None and scale.low is not None and stored is not None and len(split):
            given, _ = stored(np.arange(1), [view])
            whole = given[view].dtype == torch.uint8
            return Intake(scale.low, scale.spread, torch.uint8 if whole else torch.float32)
    if isinstance(module, HuggingFaceNet) and module.processing and module.processing[0] is not None:
        with suppress(DataError):  # a processor that takes no coloured picture
            return _of_pictures(module.processing[0])
    return None


def told(module: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is done before a graph, in a person's own code: the processor's settings, or where the data came from."""
    if not isinstance(module, HuggingFaceNet) or not module.processing or module.processing[0] is None:
        task = config.get("task") or "custom"
        plain = task in ("custom", "own")
        return {"input": "as it was given in training" if plain else f"as `mstdistill prepare {task}` makes it"}
    processing = module.processing[0]
    settings: dict[str, Any] = {"input": processing.about(), "processor": type(processing.tool).__name__}
    if processing.kind == "text":
        return {**settings, "tokens": processing.length(), "rows": list(module.ports[0].names)}
    return {**settings, "settings": {k: v for k, v in processing.tool.to_dict().items() if _is_plain(v)}}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, tuple, dict)) and len(str(value)) < 200


def _of_pictures(processing: Processing) -> Intake | None:
    """A processor's scaling of pixels, where it is one and the last thing that is done; pictures are tried."""
    if processing.kind != "image":
        return None
    tool = processing.tool
    factor = getattr(tool, "rescale_factor", None) if getattr(tool, "do_rescale", False) else None
    if not factor:
        return None
    normal = getattr(tool, "do_normalize", False)
    mean, std = (np.ravel(x) for x in ((tool.image_mean, tool.image_std) if normal else (0.0, 1.0)))
    if len(mean) not in (1, 3) or len(std) not in (1, 3):
        return None
    # pixel x factor, less mean, by std: as one subtraction and one division
    low, spread = (torch.tensor(np.broadcast_to(x / factor, 3)).float().view(1, 3, 1, 1) for x in (mean, std))
    real = Intake(low, spread, torch.float32)
    colour = real.raw(_seen(processing, np.broadcast_to(np.array(_COLOUR, np.uint8), (48, 64, 3))))
    wanted = torch.tensor(_COLOUR, dtype=torch.float32).view(1, 3, 1, 1)
    if colour.dim() != 4 or colour.shape[1] != 3 or bool(((colour - wanted).abs() > _NEAR).any()):
        return None  # it does something else too: turns colours, pads
    noise = real.raw(_seen(processing, np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)))
    whole = bool(((noise - noise.round()).abs() < _NEAR).all())
    return Intake(low, spread, torch.uint8 if whole else torch.float32)


def _seen(processing: Processing, picture: np.ndarray) -> Tensor:
    from PIL import Image

    return torch.from_numpy(processing(Image.fromarray(np.ascontiguousarray(picture)))).unsqueeze(0)
