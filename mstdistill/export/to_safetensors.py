"""Plain weights, as `Student.from_pretrained` loads them; in half precision for half the size, computed in float32."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ..files import write_tensors
from ..state import is_extra, state_of
from ..weights import load_weights
from .tracing import Logits, Subject


def write(subject: Subject, quantise: str, file: Path) -> None:
    """Write the file."""
    state = state_of(subject.module)
    if quantise == "fp16":
        state = {name: x.half() if x.is_floating_point() and not is_extra(name) else x for name, x in state.items()}
    write_tensors(file, state, {"format": "pt"})


def opened(file: Path, subject: Subject) -> torch.nn.Module:
    """A copy of the network with the file's weights, after the arithmetic that other artefacts hold themselves."""
    module = copy.deepcopy(subject.module)
    load_weights(module, str(file), "student")
    return Logits(module, subject.intake).eval()


def finish(folder: Path, subject: Subject) -> None:
    """Nothing beside the file: the exported folder's config says what it is."""
