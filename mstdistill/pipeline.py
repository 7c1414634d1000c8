"""From a recipe, or from a user's own networks and data, to a trained student, a table and a folder."""

from __future__ import annotations

import copy
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import ranks
from .config import Recipe, dump, parse
from .data.present import with_target
from .data.split import Split
from .data.task import Task
from .engine.kept_memory import kept
from .engine.launch import start, trackers_ended, trackers_started
from .engine.loop import Trainer
from .engine.progress import Screen
from .engine.run_lock import LOCK, run_lock
from .engine.stopping import resume_with
from .errors import ConfigError, DataError, Interrupted, LostProcess, MstdistillError, first_line
from .experiment import LARGE_MASK, Experiment
from .files import write_text
from .material import Material
from .methods import find_method
from .python_data import as_splits, beside_logits, networks
from .report.finished import leave_page
from .report.live import live_page
from .stages import alone
from .summary import finish, summary_of
from .tables import plan_table
from .teachers.output import as_noted, named_place, note_place
from .teachers.tap import Teacher, check_module
from .trials.of_network import Network, count_classes

# where the first process that lost another one leaves what it saw
LOSS = "ended.txt"

Observer = Callable[[str, int, Mapping[str, Tensor]], None]


@dataclass
class Result:
    """What a run leaves.

    Attributes:
        student: the distilled student, in eval mode.
        summary: every figure of the tables; the content of `summary.json`.
        folder: the run's folder.
    """

    student: nn.Module
    summary: dict[str, Any]
    folder: Path


def train(
    recipe: Recipe,
    folder: Path,
    screen: Screen | None = None,
    observe: Observer | None = None,
    fresh: bool = False,
    finished: Callable[[str], None] | None = None,
) -> Result:
    """Run a recipe in a folder; continues what an earlier call left there, or with `fresh` deletes it first.

    Args:
        finished: told the name of each stage whose result was just written.

    Raises:
        MstdistillError: anything the user can mend, in one line.
    """
    screen = screen or Screen()
    find_method(recipe.method)
    material = Material(recipe)
    with _losing_in_words(folder):
        run = recipe.run
        accelerator = start(recipe.precision, run.trackers, folder, recipe.tf32, run.timeout_seconds)
        with run_lock(folder, accelerator.device):
            if fresh:
                _clear(folder)
            student, teachers = material.networks(screen)
            splits = material.splits(screen)
            return _run(recipe, material.task, splits, student, teachers, folder, accelerator, screen, observe,
                        material.maker, material.target, finished)  # fmt: skip


def distill(
    student: nn.Module,
    teachers: Sequence[Teacher],
    train: Any,
    validation: Any,
    target: str,
    *,
    test: Any = None,
    label: str = "label",
    names: Sequence[str] | None = None,
    out: str | Path = "runs/distill",
    settings: Mapping[str, Any] | None = None,
    ignore_index: int | None = None,
    class_names: Sequence[str] = (),
    student_output: str | int | None = None,
    quiet: bool = False,
    observe: Observer | None = None,
) -> Result:
    """Distil a user's own teachers into a user's own student.

    Args:
        student: maps the target modality's tensor to logits [B, C] or [B, C, H, W], or returns something that holds
            them (a tuple, a mapping, a dataclass, an output of transformers). All networks are tried before the first
            step: a student in which no parameter learns is refused, a teacher in which none does is used as it is.
        teachers: what they see, and the submodules whose features get masks; see `Teacher`. One that is a file of
            logits: `Teacher.from_logits`.
        train, validation, test: data sets with a length and positions whose items are mappings of modality names and a
            label, or tuples of them; see `DatasetSplit` for what labels and values may be. Or prepared splits.
        target: the modality that the student sees.
        label: what items call their label.
        names: of the places of items that are tuples, as in ("camera", "radar", "label").
        out: the run's folder; a second call with it continues.
        settings: recipe settings, for example {"distill": {"epochs": 20}, "batch_size": 128}.
        ignore_index: a label that doesn't count.
        student_output: where the logits are in what the student returns (an index, a key or an attribute; several
            joined by dots), where several of its tensors could be they.

    A batch norm that would see a single number per channel, over all processes (the last batch has one row), uses its
    running statistics for that batch and leaves them as they are.

    Raises:
        MstdistillError: anything the user can mend, in one line.
    """
    check_module(student, "student")
    if student_output is not None:
        note_place(student, named_place(student_output))
    recipe = parse({"task": "custom", "target": target, **(settings or {})}, "settings")
    screen = Screen(quiet)
    double = any(p.dtype == torch.float64 for p in student.parameters())
    splits = as_splits({"train": train, "validation": validation, "test": test}, teachers, target, recipe,
                       torch.float64 if double else torch.float32, screen.say, label=label, names=names,
                       class_names=class_names, ignore_index=ignore_index)  # fmt: skip
    with _losing_in_words(Path(out)):
        run = recipe.run
        accelerator = start(recipe.precision, run.trackers, Path(out), recipe.tf32, run.timeout_seconds)
        with run_lock(Path(out), accelerator.device):
            classes = _count_classes(student, networks(teachers), splits["train"], target, recipe, len(class_names))
            task = Task("custom", "a user's own data", {}, classes, None, tuple(class_names), ignore_index,
                        multilabel=recipe.data.multilabel)  # fmt: skip
            splits = beside_logits(splits, teachers, task, recipe.data.key, screen.say)
            return _run(recipe, task, splits, student, teachers, Path(out), accelerator, screen, observe, None)


def _count_classes(
    student: nn.Module, teachers: Sequence[Teacher], split: Split, target: str, recipe: Recipe, named: int
) -> int:
    """The width of the student's logits on a few instances, where the networks lie.

    Raises:
        ConfigError: see `trials.of_network.count_classes`.
    """
    networks = [Network.teacher(t.name, t.module, t.modalities) for t in teachers]
    views = sorted({target, *(name for network in networks for name in network.view)})
    inputs, label = split.fetch(np.arange(min(2, len(split))), views)
    return count_classes(Network.student(student, target), networks, inputs, label, named, recipe.seed)


def _clear(folder: Path) -> None:
    """Delete a run's folder, and nothing that isn't one.

    Raises:
        ConfigError: the folder holds something else.
    """
    if ranks.rank() == 0:
        found = [path for path in folder.iterdir() if path.name != LOCK]
        if found and not (folder / "binding.json").exists():
            raise ConfigError(f"--fresh: {folder} holds no run; it is left alone")
        # the folder stays, with the lock that this run holds
        for path in sorted(found, key=lambda path: path.name == "binding.json"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    ranks.wait()


def _run(
    recipe: Recipe, task: Task, splits: Mapping[str, Split], student: nn.Module, teachers: Sequence[Teacher],
    folder: Path, accelerator: Any, screen: Screen, observe: Observer | None, maker: Mapping[str, Any] | None,
    target: str | None = None, finished: Callable[[str], None] | None = None,
) -> Result:  # fmt: skip
    started = time.monotonic()
    live = live_page(recipe, task, target, folder, accelerator, screen.say)
    trainer = Trainer(accelerator, recipe.run, recipe.seed, screen, observe, live.told if live else None)
    # the comparison starts from the very weights that the student starts from
    twin = _twin(student) if recipe.alone.enabled else None
    experiment = Experiment(recipe, task, splits, student, teachers, folder, trainer, target)
    experiment.finished = finished
    if twin is not None:
        as_noted(twin, student)
    if ranks.rank() == 0:
        write_text(folder / "config.yaml", dump(recipe))
        (folder / LOSS).unlink(missing_ok=True)
    ranks.wait()
    trackers_started(accelerator, task.name, recipe.model_dump(exclude={"models"}))
    screen.say(plan_table(experiment))
    for plans in experiment.mask_plans if recipe.method == "mst" else ():
        for plan in plans:
            if plan.parameters > LARGE_MASK:
                screen.say(
                    f"warning: the mask at {plan.tap} has {plan.parameters:,} parameters, "
                    f"{plan.parameters * 16 / 1e9:.1f} GB with Adam; set mask.max_parameters or mask.hidden"
                )
    try:
        keeps = kept(recipe.run.keep_memory and accelerator.device.type == "cpu")
        with _failing_in_words(folder), trainer.stopping.listening(), live.ending() if live else nullcontext(), keeps:
            outcome = find_method(recipe.method)(experiment)
            if twin is not None and outcome.finished:
                alone.run(experiment, experiment.compiled(experiment.placed(twin)))
            summary, known = summary_of(experiment, outcome, twin, started)
            if outcome.finished:
                finish(experiment, summary, maker)
                if live:
                    leave_page(experiment, live, known)
            else:
                said = f"stopped after {recipe.run.stop_after}; the same command without run.stop_after goes on"
                screen.say(said)
                if live:
                    live.close(said.capitalize())
    finally:
        experiment.released()
        trackers_ended(accelerator)
    return Result(experiment.student.eval(), summary, folder)


def _twin(student: nn.Module) -> nn.Module:
    """A copy of the student.

    Raises:
        ConfigError: it can't be copied.
    """
    try:
        twin = copy.deepcopy(student)
    except Exception as error:  # somebody keeps a handle, a lock or a tensor with a past in it
        raise ConfigError(f"student can't be copied, as its comparison wants ({first_line(error)}); let it be copied, "
                          'or leave the comparison out: settings={"alone": {"enabled": False}}') from None  # fmt: skip
    for parameter in twin.parameters():  # those of scripted modules come with a past
        if not parameter.is_leaf:
            parameter.detach_().requires_grad_()
    return twin


@contextmanager
def _failing_in_words(folder: Path) -> Iterator[None]:
    """What ends a run, in one line that says where the run is and how to go on."""
    try:
        yield
    except Interrupted as error:
        raise type(error)(f"{error}  [run: {folder}; resume with: {resume_with()}]") from None
    except MstdistillError as error:
        raise type(error)(f"{error}  [run: {folder}; the same command continues it]") from None


@contextmanager
def _losing_in_words(folder: Path) -> Iterator[None]:
    """Another process that was lost, in one line of one process."""
    try:
        yield
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        why = re.sub(r"^\[\S+\] ", "", first_line(error))  # gloo begins with a place in its source
        number, several = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))  # the group may be gone
        line = (
            f"process {number} of {several} lost another one ({why}); the last good checkpoint is kept  "
            f"[run: {folder}; the same command continues it]"
        )
        raise LostProcess(line, told=not _first_to_tell(folder, line)) from None


def _first_to_tell(folder: Path, line: str) -> bool:
    """Whether no other process of the run has noticed a loss yet; what the first one saw stays in the run's folder."""
    try:
        with (folder / LOSS).open("x") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def load_data(folder: Path, screen: Screen) -> tuple[Task, str, dict[str, Split]]:
    """A finished run's task, the student's view, and its instances that have it.

    Raises:
        MstdistillError: as `load_experiment`, or the data aren't there any more.
    """
    material = Material(_recipe_of(folder))
    splits = {name: with_target(split, material.target, name)[0] for name, split in material.splits(screen).items()}
    return material.task, material.target, splits


def load_experiment(folder: Path, screen: Screen) -> tuple[Experiment, Recipe]:
    """A finished run's experiment with its weights, for evaluation.

    Raises:
        DataError: no run there.
        ConfigError: its recipe names what this version doesn't know.
    """
    experiment, material = load_run(folder, screen)
    return experiment, material.recipe


def load_run(folder: Path, screen: Screen, key: str | None = None) -> tuple[Experiment, Material]:
    """As `load_experiment`, with what the recipe's run is made of; its instances called by a column `key`, where one is
    given."""
    recipe = _recipe_of(folder)
    recipe.data.key = key or recipe.data.key
    material = Material(recipe)
    accelerator = start(recipe.precision)
    student, teachers = material.networks(screen)
    splits = material.splits(screen)
    trainer = Trainer(accelerator, recipe.run, recipe.seed, screen)
    experiment = Experiment(recipe, material.task, splits, student, teachers, folder, trainer, material.target)
    return experiment, material


def _recipe_of(folder: Path) -> Recipe:
    import yaml

    try:
        recipe = parse(yaml.safe_load((folder / "config.yaml").read_text()), str(folder / "config.yaml"))
    except OSError:
        raise DataError(f"{folder} holds no run (no config.yaml); train one with: mstdistill train") from None
    if recipe.task == "custom":
        raise ConfigError(f"{folder} is a run of your own data; evaluate it from Python")
    return recipe
