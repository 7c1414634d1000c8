"""Settings of `prepare`: which there are, what values they take, and the one place where values are checked."""

from __future__ import annotations

import json
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, nearest

_WANTED: dict[type, str] = {bool: "true or false", tuple: "names with commas between them", str: "a text"}


@dataclass(frozen=True)
class Option:
    """A setting of a task's `prepare`.

    Attributes:
        help: what it is, in a line.
        kind: of its value: str (a text or a path), int, float, bool (a flag, given without a value), or tuple (texts
            apart by commas).
        default: what `prepare` takes without it; None: nothing, and `unset` says what happens then.
        choices: the only texts it may be.
        least, most: bounds of a number, both allowed.
        example: a value for the task's example command, True for a flag; None: the example does without it.
    """

    help: str
    kind: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    unset: str = ""
    example: str | bool | None = None

    @property
    def wanted(self) -> str:
        """Which values it takes, in words."""
        if self.choices:
            return " or ".join(filter(None, (", ".join(self.choices[:-1]), self.choices[-1])))
        if self.kind not in (int, float):
            return _WANTED[self.kind]
        number = "a whole number" if self.kind is int else "a number"
        if self.least is not None and self.most is not None:
            return f"{number} from {self.least} to {self.most}"
        return f"{number}, {self.least} or more" if self.least is not None else number

    @property
    def default_shown(self) -> str:
        """The default in words; empty where there is none."""
        if self.default is None or self.kind is bool:
            return self.unset
        return ",".join(self.default) if self.kind is tuple else str(self.default)

    def check(self, name: str, value: Any) -> Any:
        """The value as `prepare` takes it: a text, as a command line has it, is read as the option's kind.

        Raises:
            ConfigError: of another kind, or beyond the choices or bounds.
        """
        if value is None and self.default is None:
            return None
        read = _READERS[self.kind](value)
        bad = read is None or (self.choices and read not in self.choices)
        if bad or (self.least is not None and read < self.least) or (self.most is not None and read > self.most):
            raise ConfigError(f"{flag(name)} {_shown(value)}: give {self.wanted}")
        return read


WORKERS = Option("processes that read", int, least=1, unset="one a core")


def max_broken(what: str, default: float = 0.02) -> Option:
    """The option for the largest share of unreadable instances."""
    return Option(f"largest share of unreadable {what}, 0.02 being 2 %", float, default, least=0, most=1)


def released(what: str) -> Option:
    """The option for the preprocessing of the paper's authors where it differs from this project's."""
    return Option(f"the paper's authors' own preprocessing: {what}", bool, False)


def flag(name: str) -> str:
    """An option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def checked(task: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, each as its kind.

    Raises:
        ConfigError: an unknown name, or a value that its option doesn't take.
    """
    for name in given:
        if name not in known:
            raise ConfigError(unknown(task, known, name))
    try:
        return {name: known[name].check(name, value) for name, value in given.items()}
    except ConfigError as error:
        raise ConfigError(f"{task}: {error}") from None


def unknown(task: str, known: Iterable[str], name: str) -> str:
    """What to say of an option that a task doesn't have."""
    given = name if name.startswith("-") else flag(name)
    return f"{task} has no option {given!r}; {nearest(given.lstrip('-'), (flag(other)[2:] for other in known))}"


def checking(task: str, prepare: Callable[..., Path], known: Mapping[str, Option]) -> Callable[..., Path]:
    """`prepare`, with its folder and options checked before it does anything."""

    @wraps(prepare)
    def careful(folder: Path | str, screen: Any = None, **options: Any) -> Path:
        values = checked(task, known, options)
        return prepare(_free_folder(task, Path(folder)), screen, **values)

    return careful


def _free_folder(task: str, folder: Path) -> Path:
    """A folder in which a task's data can be made, or are.

    Raises:
        DataError: a file, below a file, not to be written to, or it holds something else.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise DataError(f"--out {folder}: {'it' if there == folder else there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise DataError(f"--out {folder}: {there} can't be written to; choose another folder")
    if there != folder or not any(folder.iterdir()):
        return folder
    try:
        owner = json.loads((folder / "card.json").read_text())["task"]
    except (OSError, ValueError, KeyError, TypeError):
        owner = None
    if owner != task:
        what = "something else" if owner is None else f"data of {owner!r}"
        raise DataError(f"{folder} holds {what} already; choose another --out")
    return folder


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(value) if text != text.strip() or not text else text.splitlines()[0][:80]


# A value of each kind, or None where it is of another.


def _text(value: Any) -> str | None:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value if isinstance(value, str) and value.strip() else None


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value) else None
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        value = float(value) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value) else None
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def _flag(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value) if isinstance(value, str) else None


def _names(value: Any) -> tuple[str, ...] | None:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        return None
    names = tuple(part.strip() if isinstance(part, str) else "" for part in parts)
    return names if all(names) else None


_READERS: Mapping[type, Callable[[Any], Any]] = {
    str: _text, int: _whole, float: _number, bool: _flag, tuple: _names,
}  # fmt: skip
