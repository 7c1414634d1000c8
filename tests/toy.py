"""A whole run on the toy task in a second: used by end-to-end, fault and distributed tests, here or in processes of
their own (`python -m tests.toy OUT key=value ...`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from mstdistill import Teacher, distill
from mstdistill.data.split import Split
from mstdistill.engine.seeding import initialising
from mstdistill.errors import MstdistillError
from mstdistill.pipeline import Result

from .conftest import MLP, make_split
from .several import Several

SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "mask": {"hidden_dim_factor": 1},
    "cotrain": {"epochs": 2, "lr": 0.01},
    "specialise": {"epochs": 2, "lr": 0.01},
    "distill": {"epochs": 4, "lr": 0.01},
    "run": {"trackers": [], "checkpoint_seconds": 0.0, "page": False},
}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def networks(dropout: float = 0.0, norm: bool = False, unused: bool = False) -> tuple[torch.nn.Module, list[Teacher]]:
    with initialising(0, "toy"):
        student: torch.nn.Module = MLP(6, 12, 8, 3)
        if dropout:
            student.fc2 = torch.nn.Sequential(torch.nn.Dropout(dropout), student.fc2)  # type: ignore[assignment]
        teachers = [
            Teacher("both", MLP(11, 12, 8, 3), ("m1", "m2"), ("fc1", "fc2")),
            Teacher("other", MLP(5, 12, 8, 3), ("m2",), ("fc1", "fc2")),
        ]
    for network in [student, *(teacher.module for teacher in teachers)] if norm else ():
        network.fc1.bias = None  # before a norm its gradient is rounding alone, of which Adam makes steps
        network.fc1 = torch.nn.Sequential(network.fc1, torch.nn.BatchNorm1d(12))
    for network in [student, *(teacher.module for teacher in teachers)] if unused else ():
        network.unused = torch.nn.Linear(3, 3)
    return student, teachers


class Gappy:
    """A split of which some instances lack modalities, with anything in their place.

    Args:
        lacks: modality -> positions.
        fill: what stands where nothing is.
    """

    deterministic = True

    def __init__(self, split: Split, lacks: Mapping[str, list[int]], fill: float = 0.0) -> None:
        self.split, self.fill, self.fingerprint = split, fill, split.fingerprint + repr(sorted(lacks.items()))
        self.present = {name: ~np.isin(np.arange(len(split)), rows) for name, rows in lacks.items()}

    def __len__(self) -> int:
        return len(self.split)

    def fetch(self, index: np.ndarray, modalities: Any) -> tuple[dict[str, Tensor], Tensor]:
        inputs, label = self.split.fetch(index, modalities)
        for name, there in self.present.items():
            if name in inputs:
                inputs[name] = inputs[name].clone()
                inputs[name][torch.from_numpy(~there[index])] = self.fill
        return inputs, label


def gappy(count: int = 80, seed: int = 1, fill: float = 0.0, several: bool = False) -> Gappy:
    """A third without `m2`, two without the target; `several`: of several classes each."""
    whole: Split = Several(count, seed, unknown=0.2) if several else make_split(count, seed=seed)
    return Gappy(whole, {"m2": list(range(0, count, 3)), "m1": [4, 7]}, fill)


def run(
    out: Path | str, count: int = 80, dropout: float = 0.0, norm: bool = False, unused: bool = False,
    lacking: bool = False, hiding: float = 0.0, several: bool = False, **settings: Any,
) -> Result:  # fmt: skip
    """The three stages and the comparison on `count` toy instances; `lacking` some modalities, of which the first
    teacher needs not all; `several`: of several classes each."""
    if several:
        splits = {"train": Several(count, 1, unknown=0.2), "validation": Several(30, 2), "test": Several(30, 3, 0.1)}
        settings = {**splits, **merged({"data": {"multilabel": True}}, settings)}
    student, teachers = networks(dropout, norm, unused)
    if lacking:
        teachers[0].missing, teachers[0].modality_dropout = "zero", hiding
        settings["train"] = gappy(count, several=several)
    extra = {key: settings.pop(key) for key in ("observe", "train", "validation", "test", "quiet") if key in settings}
    return distill(
        student, teachers, extra.pop("train", None) or make_split(count, seed=1),
        extra.pop("validation", None) or make_split(30, seed=2), "m1",
        test=extra.pop("test", None) or make_split(30, seed=3), out=out,
        settings=merged(SETTINGS, settings), **{"quiet": True, **extra},
    )  # fmt: skip


def _die_at(stage: str, step: str) -> Any:
    def observe(name: str, number: int, parts: Any) -> None:
        if (name, number) == (stage, int(step)):
            os._exit(9)

    return observe


def main() -> None:
    settings: dict[str, Any] = {}
    for word in sys.argv[2:]:
        key, value = word.split("=", 1)
        if key == "die":  # STAGE:STEP, as a killed process does
            settings["observe"] = _die_at(*value.split(":"))
            continue
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        settings = merged(settings, nested)
    try:
        run(sys.argv[1], **settings)
    except MstdistillError as error:
        print(f"toy: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
