"""What ships, told without importing it: tasks, their options and backbones, from an index beside this file.

Tasks and backbones are found by importing their files, which need torch, two seconds of it. What a person asks of them
alone (a list, an option's name, a mistake in it) stands in `shipped.json`. It knows the files that it was made of: when
one changes, or is new, the files are imported again and the index is renewed, so nobody needs to think of it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .data.options import Option
from .data.task import Task
from .errors import CheckpointError, ConfigError, nearest
from .files import write_text

_HERE = Path(__file__).parent
INDEX = _HERE / "shipped.json"
_KINDS = {kind.__name__: kind for kind in (str, int, float, bool, tuple)}


@dataclass(frozen=True)
class ShippedBackbone:
    """A backbone's shapes of inputs, without batch, and a line about it."""

    inputs: tuple[tuple[int, ...], ...]
    about: str


@dataclass(frozen=True)
class Shipped:
    """What ships.

    Attributes:
        tasks: by name, without their `prepare`.
        preparable: names of the tasks that have one.
        backbones: by name.
    """

    tasks: dict[str, Task]
    preparable: tuple[str, ...]
    backbones: dict[str, ShippedBackbone]

    def task(self, name: str) -> Task:
        """A task by name.

        Raises:
            ConfigError: unknown; the message lists the nearest.
        """
        if name not in self.tasks:
            raise ConfigError(f"unknown task {name!r}; {nearest(name, self.tasks)}")
        return self.tasks[name]


def shipped(index: Path = INDEX) -> Shipped:
    """Tasks and backbones, from the index where it is of these files, else from the files."""
    digest = files_digest()
    try:
        facts = json.loads(index.read_text())
        fresh = facts["files"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        fresh = False
    if not fresh:
        facts = {"files": digest, **_facts()}
        with suppress(CheckpointError):  # installed where nobody may write: imported each time
            write_text(index, json.dumps(facts, indent=1) + "\n")
    return _read(facts)


def files_digest() -> str:
    """Of the files that tell what ships."""
    digest = hashlib.sha256()
    places = (_HERE / "data" / "sources", _HERE / "backbones")
    for path in [*(_HERE / "data" / name for name in ("options.py", "task.py")), *places]:
        for file in sorted(path.glob("*.py")) if path.is_dir() else (path,):
            digest.update(f"{file.relative_to(_HERE).as_posix()}\n".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _facts() -> dict[str, Any]:
    from .backbones.catalogue import backbones
    from .data.sources.registry import tasks

    return {
        "tasks": [_task_facts(task) for task in tasks().values()],
        "backbones": {name: {"inputs": one.inputs, "about": one.about} for name, one in backbones().items()},
    }


def _task_facts(task: Task) -> dict[str, Any]:
    options = {name: {**asdict(option), "kind": option.kind.__name__} for name, option in task.options.items()}
    return {
        "name": task.name, "title": task.title, "modalities": dict(task.modalities), "num_classes": task.num_classes,
        "class_names": task.class_names, "ignore_index": task.ignore_index, "embedded": task.embedded,
        "version": task.version, "options": options, "prepare": task.prepare is not None,
    }  # fmt: skip


def _read(facts: dict[str, Any]) -> Shipped:
    facts = json.loads(json.dumps(facts))  # the same things, whether they come from the file or not
    tasks, preparable = {}, []
    for one in facts["tasks"]:
        if one.pop("prepare"):
            preparable.append(one["name"])
        one["modalities"] = {name: tuple(shape) for name, shape in one["modalities"].items()}
        one["class_names"] = tuple(one["class_names"])
        one["options"] = {name: _option(option) for name, option in one["options"].items()}
        tasks[one["name"]] = Task(**one)
    backbones = {
        name: ShippedBackbone(tuple(tuple(shape) for shape in one["inputs"]), one["about"])
        for name, one in facts["backbones"].items()
    }
    return Shipped(tasks, tuple(preparable), backbones)


def _option(facts: dict[str, Any]) -> Option:
    kind = _KINDS[facts["kind"]]
    default = tuple(facts["default"]) if kind is tuple and facts["default"] is not None else facts["default"]
    return Option(**{**facts, "kind": kind, "default": default, "choices": tuple(facts["choices"])})
