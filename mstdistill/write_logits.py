"""A network's logits as a file, for runs in which it teaches without being there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import config
from .data.feeding.loader import Loader
from .data.keyed_file import one_name_each
from .data.split import Split, identities
from .engine.launch import start
from .engine.progress import Screen
from .errors import ConfigError, DataError, nearest
from .experiment import Experiment
from .material import Material
from .pipeline import load_run
from .stages.rounds import latest
from .state import load_state
from .student import Student
from .teachers.logits_file import write_logits
from .teachers.tap import call, freeze
from .weights import part

# How a run is told which column names its instances.
_KEY = "data.key="


@dataclass
class Source:
    """A trained network and the data that it looks at."""

    module: nn.Module
    view: tuple[str, ...]
    splits: Mapping[str, Split]
    num_classes: int
    batch_size: int
    accelerator: Any
    nameless: str


def write(
    source: Path, network: str, recipe: str | None, overrides: Sequence[str], out: Path, top: int | None = None
) -> Path:
    """Write the logits of a run's network, or of an exported student on a recipe's data.

    Args:
        recipe: whose data a student looks at; of a run, "data.key=COLUMN" or nothing.
        out: .safetensors, by order; .npz, by what names the instances.
        top: keep the k largest classes alone.

    Raises:
        ConfigError: what can't be done, in one line.
        DataError: no run, student or data there.
    """
    if out.suffix not in (".safetensors", ".npz"):
        raise ConfigError(f"--out {out}: logits are written as .safetensors, or with keys as .npz")
    screen = Screen()
    exported = (source / "model.safetensors").exists()
    if not exported and recipe is not None and (overrides or not recipe.startswith(_KEY)):
        raise ConfigError(f"{source} is a run, which has its own data; a recipe goes with an exported student")
    key = None if exported or recipe is None else recipe.removeprefix(_KEY)
    found = _of_student(source, recipe, overrides, screen) if exported else _of_run(source, network, key, screen)
    keys = _keys(found, out) if out.suffix == ".npz" else None
    device, processes = found.accelerator.device, found.accelerator.num_processes
    freeze(found.module).to(device)
    loaders = {name: Loader(split, found.view, found.batch_size, num_classes=found.num_classes, name=name)
               for name, split in found.splits.items()}  # fmt: skip
    steps = sum(-(-len(split) // (found.batch_size * processes)) for split in found.splits.values())
    with screen.task("logits", steps) as bar:
        write_logits(
            out, found.module, lambda batch: call(found.module, batch.inputs, found.view), loaders, found.num_classes,
            device, bar.advance, screen.say, top, {"source": str(source), "network": network},
            keys,
        )  # fmt: skip
    counts = ", ".join(f"{name} {len(split):,}" for name, split in found.splits.items())
    screen.say(f"logits: {out}  ({counts} instances, {found.num_classes} classes)")
    screen.say(f"as a teacher: {{name: {network}, logits: {out}}}")
    return out


def _keys(source: Source, out: Path) -> list[str]:
    """What names the instances of all splits.

    Raises:
        ConfigError: nothing does.
        DataError: not each of them, or two alike.
    """
    found = {name: identities(split) for name, split in source.splits.items()}
    names = {name: one for name, one in found.items() if one is not None}
    if len(names) < len(found):
        raise ConfigError(f"--out {out}: logits by key, and {source.nameless}")
    return one_name_each(names, "write .safetensors, by the order of rows, or name another data.key")


def _of_run(folder: Path, network: str, key: str | None, screen: Screen) -> Source:
    experiment, material = load_run(folder, screen, key)
    recipe = material.recipe
    module, view = _network(experiment, folder, network)
    splits = {name: split for name, split in experiment.splits.items() if experiment.judges(view, name)}
    return Source(module, tuple(view), splits, experiment.task.num_classes, recipe.batch_size, experiment.accelerator,
                  material.nameless)  # fmt: skip


def _network(experiment: Experiment, folder: Path, name: str) -> tuple[nn.Module, Sequence[str]]:
    if name == "student":
        student = Student.from_pretrained(folder / "student", module=experiment.student)
        return student.module, (experiment.target,)
    known = [teacher.name for teacher in experiment.teachers]
    if name not in known:
        raise ConfigError(f"--network {name!r}: {nearest(name, ['student', *known])}")
    number = known.index(name)
    teacher = experiment.teachers[number]
    trained, alone = latest(experiment), experiment.result(f"teacher-{name}")
    if trained is not None:
        load_state(teacher.module, part(trained.state, f"teachers.{number}"))
    elif alone is not None:
        load_state(teacher.module, alone.state)
    elif not teacher.frozen:
        raise DataError(f"{folder} has not trained teacher {name!r}")
    return teacher.module, teacher.modalities


def _of_student(folder: Path, recipe: str | None, overrides: Sequence[str], screen: Screen) -> Source:
    if recipe is None:
        raise ConfigError(f"{folder} is an exported student: name the recipe whose data it is to look at")
    student = Student.from_pretrained(folder)
    classes = student.config["num_classes"]
    resolved = config.load(recipe, [*overrides, f"target={student.config['modality']}"])
    material = Material(resolved)
    if material.task.num_classes != classes:
        raise ConfigError(f"{folder} knows {classes} classes, {material.task.name} has {material.task.num_classes}")
    accelerator = start(resolved.precision)
    splits = material.splits(screen)
    return Source(student.module, (material.target,), splits, classes, resolved.batch_size, accelerator,
                  material.nameless)  # fmt: skip
