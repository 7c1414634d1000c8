"""Stages that cells have in common are run once: a teacher trained alone, a co-training.

A stage's result is known by the hash of everything that it depends on. Before a cell runs, results that others left are
put into its folder, where the stage finds them as its own; its own are left for others as soon as they are there. While
one worker is at such a stage, the others take up cells that don't need it.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import Recipe
from ..methods import find_baseline
from ..methods.comparison import chosen_teachers
from .claims import Claim, take
from .plan import digest

# What the teachers' training and the co-training see of a recipe, whatever the method.
_COMMON = ("task", "target", "seed", "precision", "batch_size", "accumulate", "tf32", "channels_last", "data",
           "validation_mean", "augment")  # fmt: skip


def shareable(recipe: Recipe, code: str, data: str) -> dict[str, str]:
    """Stages of a recipe whose results serve other recipes: stage -> key."""
    if recipe.partly and recipe.data.labelled is not None and recipe.data.labelled < 1:
        recipe = recipe.for_partly_labelled()
    content = recipe.binding()
    common = [{name: content[name] for name in _COMMON if name in content}, code, data]
    if recipe.method == "mst":
        networks: Any = content["models"][recipe.target]
        networks = {**networks, "teachers": [{**t, "taps": None} for t in networks["teachers"]]}
        facts = [content["cotrain"], content["temperature"], *([recipe.partly] if recipe.partly else [])]
        keys = {"cotrain": digest(["cotrain", common, networks, *facts])}
        for number in range(1, recipe.rounds.count + 1):
            keys[f"round-{number}"] = digest(
                [number, keys["cotrain"], content.get("rounds"), content["distill"]["cache"]]
            )
        for number in range(1, recipe.routing.folds + 1):
            keys[f"fold-{number}"] = digest(["fold", number, recipe.routing.folds, keys["cotrain"]])
        return keys
    method = find_baseline(recipe.method)
    assert method is not None
    kinds = {t.name: "multimodal" if recipe.target in t.modalities else "crossmodal" for t in recipe.pairing.teachers}
    wanted = chosen_teachers(method, recipe.baseline.teacher, kinds)
    keys = {}
    for teacher in recipe.pairing.teachers:
        if teacher.name not in wanted:
            continue
        settings = {
            "epochs": recipe.baseline.teacher_epochs if recipe.baseline.teacher_epochs is not None
            else recipe.distill.epochs,
            "lr": recipe.baseline.teacher_lr or recipe.distill.lr,
        }  # fmt: skip
        network = {**teacher.model_dump(), "taps": None}
        keys[f"teacher-{teacher.name}"] = digest(["teacher", common, network, settings])
    return keys


class Busy(Exception):
    """Another worker is at a stage that this cell would share."""


class Shared:
    """The shared stages of a cell that is run here: those borrowed, and those claimed to be run."""

    def __init__(self, folder: Path, run: Path, keys: dict[str, str]) -> None:
        self.folder, self.run, self.keys = folder, run, keys
        self.claims: dict[str, Claim] = {}
        lend(folder, run, keys)  # what a killed worker had finished and not yet left
        self.borrowed = borrow(folder, run, keys)

    def claim(self) -> None:
        """Claim the stages that nobody has finished.

        Raises:
            Busy: another worker runs one of them.
        """
        (self.folder / "stages").mkdir(exist_ok=True)
        for stage, key in self.keys.items():
            if (self.run / stage / "result.json").exists():
                continue
            claim = take(self.folder / "stages" / f"{key}.claim", lambda: os._exit(3))
            if claim is None:
                raise Busy(stage)
            self.claims[stage] = claim
            if (self.folder / "stages" / key / "result.json").exists():  # finished in between
                self.borrowed += borrow(self.folder, self.run, {stage: key})
                self.claims.pop(stage).release()

    def finished(self, stage: str) -> None:
        """Leave a stage's result for the others."""
        if stage in self.keys:
            lend(self.folder, self.run, {stage: self.keys[stage]})
        if stage in self.claims:
            self.claims.pop(stage).release()

    def release(self) -> None:
        """Give up what is claimed still."""
        for claim in self.claims.values():
            claim.release()
        self.claims.clear()


@contextmanager
def sharing(folder: Path, run: Path, keys: dict[str, str]) -> Iterator[Shared]:
    """Borrow what others left, claim the rest; what is claimed is given up at the end.

    Raises:
        Busy: another worker is at one of the stages.
    """
    shared = Shared(folder, run, keys)
    try:
        shared.claim()
        yield shared
    finally:
        shared.release()


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
