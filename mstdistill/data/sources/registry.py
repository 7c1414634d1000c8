"""The tasks that ship, by name, and where their prepared data lie."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from pathlib import Path

from ...errors import ConfigError, nearest
from ..place import home
from ..task import Task


@lru_cache(maxsize=1)
def tasks() -> dict[str, Task]:
    """Every task that this package ships."""
    package = importlib.import_module("mstdistill.data.sources")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            task: Task | None = getattr(importlib.import_module(f"mstdistill.data.sources.{module.name}"), "TASK", None)
            if task is not None:
                found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: unknown; the message lists the nearest.
    """
    known = tasks()
    if name not in known:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, known)}")
    return known[name]


def folder_of(task: Task, directory: str | None) -> Path:
    """Where a task's prepared data lies."""
    return Path(directory).expanduser() if directory else home() / f"{task.name}-v{task.version}"
