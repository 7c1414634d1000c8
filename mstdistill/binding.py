"""What a run's folder is bound to: settings, data and networks; a run goes on with the same ones alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import ranks
from .errors import CheckpointError
from .files import write_text


def bind(folder: Path, content: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Bind a folder to a run, or find it bound to one that may go on so; returns what it is bound to.

    Args:
        content: JSON of the run's settings, data, networks and processes.
        say: told of remarks.

    Raises:
        CheckpointError: the folder holds a run of something else.
    """
    path, now = folder / "binding.json", json.loads(json.dumps(content))
    bound: dict[str, Any] = now
    if path.exists():
        try:
            bound = json.loads(path.read_text())
        except ValueError:
            raise CheckpointError(f"{path} is damaged; choose another --out or delete the folder") from None
        _compare(folder, bound, now, say)
    ranks.wait()
    if ranks.rank() == 0 and not path.exists():
        write_text(path, json.dumps(content, indent=1))
    ranks.wait()
    return bound


def _compare(folder: Path, bound: dict[str, Any], now: dict[str, Any], say: Callable[[str], None]) -> None:
    """A run goes on with other processes: exactly so where a step's whole batch stays, and where each process's own
    stays (nodes that come and go) with a remark.

    Raises:
        CheckpointError: what the folder is bound to is something else.
    """
    different = _differences(_with_whole_batches(bound), _with_whole_batches(now))
    if different and _differences({**bound, "processes": 0}, {**now, "processes": 0}) == []:
        say(f"goes on with {now['processes']} processes, begun with {bound['processes']}: a step sees another number "
            "of instances from here on")  # fmt: skip
    elif different:
        note = ""
        if any(key.endswith("batch_size") for key in different):
            note = "; batch sizes are of a whole step here: batch_size x accumulate x processes"
        raise CheckpointError(
            f"{folder} holds a run of another config (differs in {', '.join(different[:4])}{note}); "
            "choose another --out, or delete the folder"
        )


def _with_whole_batches(bound: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder is bound to, with batches as a step of the optimiser sees them."""
    settings = dict(bound["settings"])
    parts = settings.pop("accumulate", 1) * bound["processes"]
    settings["batch_size"] *= parts
    for stage in ("cotrain", "rounds", "specialise", "distill"):
        if settings.get(stage, {}).get("batch_size") is not None:
            settings[stage] = {**settings[stage], "batch_size": settings[stage]["batch_size"] * parts}
    return {**{key: value for key, value in bound.items() if key != "processes"}, "settings": settings}


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two contents differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*before, *now}):
            found += _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if before == now else [prefix.removeprefix("settings.")]
