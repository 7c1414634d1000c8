"""What a suite consists of: a YAML file becomes cells, each a recipe known by the hash of what decides its figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from .. import config
from ..config import Recipe, Settings
from ..errors import ConfigError, MstdistillError, nearest
from ..files import write_text
from ..methods import find_method

# of a suite's folder: what it compares
SAVED = "suite.json"
# What only draws or tells changes no figure.
_TELLING = ("suite", "report", "cli.py", "commands", "refusals.py", "shipped.py")


class SuiteTask(Settings):
    """A recipe and the students to train on it."""

    recipe: str = Field(description="a shipped recipe or a YAML file")
    targets: list[str] = Field(min_length=1, description="the modalities whose students are compared")
    overrides: list[str] = Field(default_factory=list, description="key=value, for this task only")
    name: str | None = Field(None, description="as the tables call it; none: as its recipe's task is called")
    at: float | None = Field(None, ge=0, description="its place on the suite's axis: figures over tasks become a curve")
    seeds: int | None = Field(None, ge=1, description="the first so many of the suite's seeds; none: all")


class SuiteMethod(Settings):
    """A column of the comparison."""

    name: str = Field(description="as the tables call it")
    method: str = Field("mst", description="as the setting of a recipe")
    presets: list[str] = Field(default_factory=list, description="over the task's recipe, for this method only")
    overrides: list[str] = Field(default_factory=list, description="key=value, for this method only")


class Suite(Settings):
    """A comparison."""

    name: str = Field(description="of its folder, runs/suite-NAME")
    about: str = Field("", description="a line for its tables")
    tasks: list[SuiteTask] = Field(min_length=1, description="the rows: recipes and the students to train on them")
    methods: list[SuiteMethod] = Field(min_length=1, description="what is compared on each of them")
    seeds: list[int] = Field(min_length=1, description="each cell is trained with every one")
    overrides: list[str] = Field(default_factory=list, description="key=value, for every cell")
    metric: str = Field("accuracy", description="what tables compare")
    split: Literal["test", "validation"] = Field("test", description="whose figures; validation: to choose settings by")
    axis: str = Field("", description="what grows from task to task, where these have a place on it (at)")
    first: list[str] = Field(default_factory=list, description="methods that its curves show first; none: all alike")
    reference: str | None = Field(None, description="the method that every other is compared with; none: the best one")
    retries: int = Field(2, ge=0, description="further attempts at a cell that fails")


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        key: hash of the resolved recipe, the code and the data: equal cells are run once.
        data: hash of its instances.
    """

    task: str
    target: str
    method: str
    seed: int
    key: str
    recipe: Recipe = field(compare=False)
    data: str = field(compare=False)

    @property
    def title(self) -> str:
        """One line for people."""
        return f"{self.task}, {self.target}, {self.method}, seed {self.seed}"


@dataclass
class Grid:
    """A suite's cells in the order of running: seeds outermost, so that an unfinished suite compares all methods."""

    suite: Suite
    cells: list[Cell] = field(default_factory=list)


def suite_names() -> list[str]:
    """Suites that ship with the package."""
    return sorted(
        path.name[:-5] for path in resources.files("mstdistill.suites").iterdir() if path.name.endswith(".yaml")
    )


def load_suite(source: str, overrides: Sequence[str] = ()) -> Suite:
    """A suite from a shipped name or a YAML file.

    Args:
        overrides: key=value for every cell; `seeds=[0,1]` changes the suite's seeds.

    Raises:
        ConfigError: unknown suite, key, method or recipe: nothing has run by then.
    """
    if source in suite_names():
        text = resources.files("mstdistill.suites").joinpath(f"{source}.yaml").read_text()
    elif Path(source).suffix in (".yaml", ".yml"):
        try:
            text = Path(source).read_text()
        except OSError as error:
            raise ConfigError(f"{source}: can't be read ({error.strerror})") from None
    else:
        raise ConfigError(f"unknown suite {source!r}; {nearest(source, suite_names())}")
    try:
        content = yaml.safe_load(text)
        own = {key: yaml.safe_load(value) for key, value in _split(overrides) if key in Suite.model_fields}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: a suite is a mapping of settings")
    try:
        suite = Suite.model_validate({**content, **own})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{source}: unknown key {where!r}; {nearest(where, Suite.model_fields)}") from None
        raise ConfigError(f"{source}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    suite.overrides += [f"{key}={value}" for key, value in _split(overrides) if key not in Suite.model_fields]
    _check_names(suite, source)
    return suite


def save_suite(suite: Suite, folder: Path) -> None:
    """Leave in a suite's folder what it compares, for its report."""
    write_text(folder / SAVED, suite.model_dump_json(indent=1))


def saved_suite(folder: Path) -> Suite:
    """What `save_suite` left.

    Raises:
        ConfigError: nothing, or nothing that can be read.
    """
    try:
        return Suite.model_validate_json((folder / SAVED).read_text())
    except (OSError, ValidationError) as error:
        cause = "isn't there" if isinstance(error, FileNotFoundError) else "can't be read"
        raise ConfigError(
            f"{folder / SAVED} {cause}; write it with: mstdistill reproduce SUITE --tables --out {folder}"
        ) from None


def _split(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write key=value, for example seeds=[0,1]")
        pairs.append((key, value))
    return pairs


def _check_names(suite: Suite, source: str) -> None:
    names = [method.name for method in suite.methods]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: two methods are called {name!r}; tables need a name for each")
    if suite.reference is not None and suite.reference not in names:
        raise ConfigError(f"{source}: reference {suite.reference!r} is no method; {nearest(suite.reference, names)}")


def plan(suite: Suite) -> Grid:
    """Every cell of a suite, resolved.

    Raises:
        ConfigError: a recipe, preset, override or method that doesn't exist.
        DataError: data that aren't prepared.
    """
    code, grid = code_version(), Grid(suite)
    data: dict[str, str] = {}
    owner: dict[tuple[str, str], SuiteTask] = {}
    for number, seed in enumerate(suite.seeds):
        for task in suite.tasks:
            if task.seeds is not None and number >= task.seeds:
                continue
            for target in task.targets:
                for method in suite.methods:
                    cell = _cell(suite, task, target, method, seed, code, data)
                    if owner.setdefault((cell.task, target), task) is not task:
                        raise ConfigError(
                            f"suite {suite.name}: two of its tasks are called {cell.task!r}; give each a name"
                        )
                    grid.cells.append(cell)
    return grid


def _cell(
    suite: Suite, task: SuiteTask, target: str, method: SuiteMethod, seed: int, code: str, data: dict[str, str]
) -> Cell:
    changes = [*suite.overrides, *task.overrides, f"method={method.method}", *method.overrides,
               f"target={target}", f"seed={seed}", "alone.enabled=false"]  # fmt: skip
    find_method(method.method)
    recipe = config.load(task.recipe, changes, method.presets)
    source = json.dumps([recipe.task, recipe.data.model_dump()], sort_keys=True)
    if source not in data:
        data[source] = data_fingerprint(recipe)
    key = digest([recipe.binding(), code, data[source]])
    return Cell(task.name or recipe.task, target, method.name, seed, key, recipe, data[source])


def digest(content: Any) -> str:
    """A short hash of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def data_fingerprint(recipe: Recipe) -> str:
    """A hash of the instances that a recipe uses."""
    from ..engine.progress import Screen
    from ..material import Material

    try:
        splits = Material(recipe).splits(Screen(quiet=True))
    except MstdistillError as error:
        raise type(error)(f"task {recipe.task}: {error}") from None
    return digest({name: split.fingerprint for name, split in splits.items()})


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the package's source: figures of other code are other figures."""
    from .. import __file__ as package

    found = hashlib.sha256()
    root = Path(package).parent
    kernels = find_spec("mstdistill.kernels")  # found, not imported: that would load torch
    assert kernels is not None, "installed with the package"
    assert kernels.origin is not None, "a package with an __init__.py"
    for folder in (root, Path(kernels.origin).parent):
        for path in sorted(folder.rglob("*.py")):
            # what only draws or tells changes no figure
            if path.relative_to(folder).parts[0] not in (
                "suite",
                "report",
                "cli.py",
                "commands",
                "refusals.py",
                "shipped.py",
            ):
                found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def records(grid: Grid, folder: Path) -> dict[Cell, Mapping[str, Any]]:
    """What is known of each finished cell, by this code."""
    found = {}
    for cell in grid.cells:
        path = folder / "cells" / cell.key / "cell.json"
        if path.exists():
            found[cell] = json.loads(path.read_text())
    return found
