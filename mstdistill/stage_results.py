"""A stage's result: the weights it selected and the figures of its epochs, in the stage's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .engine.loop import Fit
from .errors import first_line
from .files import write_tensors, write_text


def write_result(folder: Path, fit: Fit, facts: Mapping[str, Any]) -> None:
    """Write `result.safetensors`, then `result.json`, whose presence says that the stage has ended."""
    write_tensors(folder / "result.safetensors", fit.state)
    write_text(folder / "result.json", json.dumps(
        {**facts, "best_epoch": fit.best_epoch, "history": fit.history}, indent=1))  # fmt: skip


def read_result(folder: Path, say: Callable[[str], None]) -> Fit | None:
    """A finished stage's result; None: it isn't there, or is damaged, which is said."""
    if not (folder / "result.json").exists():
        return None
    try:
        facts = json.loads((folder / "result.json").read_text())
        state: dict[str, Tensor] = load_file(folder / "result.safetensors")
    except Exception as error:  # safetensors raises its own kind for a damaged file
        say(f"{folder}: the result is damaged ({first_line(error)}); running the stage again")
        return None
    return Fit(state, facts["best_epoch"], facts["history"])
