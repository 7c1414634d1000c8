"""Stages that cells have in common are run once: a teacher trained alone, a co-training.

A stage's result is known by the hash of everything that it depends on. Before a cell runs, results that others left are
put into its folder, where the stage finds them as its own; afterwards its own are left for others.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from ..config import Recipe
from .plan import digest

# What the teachers' training and the co-training see of a recipe, whatever the method.
_COMMON = ("task", "target", "seed", "precision", "batch_size", "accumulate", "tf32", "channels_last", "data",
           "validation_mean")  # fmt: skip


def shareable(recipe: Recipe, code: str, data: str) -> dict[str, str]:
    """Stages of a recipe whose results serve other recipes: stage -> key."""
    content = recipe.binding()
    common = [{name: content[name] for name in _COMMON}, code, data]
    if recipe.method == "mst":
        networks: Any = content["models"][recipe.target]
        networks = {**networks, "teachers": [{**t, "taps": None} for t in networks["teachers"]]}
        return {"cotrain": digest(["cotrain", common, networks, content["cotrain"], content["temperature"]])}
    keys: dict[str, str] = {}
    for teacher in recipe.pairing.teachers:
        settings = {
            "epochs": recipe.baseline.teacher_epochs if recipe.baseline.teacher_epochs is not None
            else recipe.distill.epochs,
            "lr": recipe.baseline.teacher_lr or recipe.distill.lr,
        }  # fmt: skip
        network = {**teacher.model_dump(), "taps": None}
        keys[f"teacher-{teacher.name}"] = digest(["teacher", common, network, settings])
    return keys


def borrow(folder: Path, run: Path, keys: dict[str, str]) -> list[str]:
    """Put results that are there already into a run's folder; returns the stages."""
    found = []
    for stage, key in keys.items():
        source, goal = folder / "stages" / key, run / stage
        if (source / "result.json").exists() and not (goal / "result.json").exists():
            goal.mkdir(parents=True, exist_ok=True)
            for name in ("result.safetensors", "result.json"):  # the second says that the first is whole
                temporary = goal / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
                shutil.copyfile(source / name, temporary)
                temporary.replace(goal / name)
            found.append(stage)
    return found


def lend(folder: Path, run: Path, keys: dict[str, str]) -> None:
    """Leave a run's results for others."""
    for stage, key in keys.items():
        source, goal = run / stage, folder / "stages" / key
        if not (source / "result.json").exists() or (goal / "result.json").exists():
            continue
        temporary = goal.with_name(f".{key}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir(parents=True)
        for name in ("result.safetensors", "result.json"):
            shutil.copyfile(source / name, temporary / name)
        try:
            temporary.rename(goal)
        except OSError:  # another worker was faster, with the same numbers
            shutil.rmtree(temporary, ignore_errors=True)


def seconds_of(run: Path, stages: list[str]) -> float:
    """What borrowed stages took where they were run."""
    total = 0.0
    for stage in stages:
        total += float(json.loads((run / stage / "result.json").read_text()).get("seconds", 0.0))
    return total
