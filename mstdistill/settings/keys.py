"""Every setting as a row: its key as it is typed, which values it takes, its default and its line; needs no torch."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ..config import Recipe, Settings
from ..methods import METHODS
from ..shipped import shipped
from ..suite.plan import Suite

# what stands in a key for a name that people choose: the target of `models`
ANY = "TARGET"
# ends the key of a list whose entries have settings of their own: those are written in a file, not on a command line
ENTRY = "[]"
_NUMBERS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Setting:
    """A setting.

    Attributes:
        key: with dots, as `key=value` has it.
        about: one line.
        takes: its values, in words.
        default: as YAML would have it; None also where there is none.
        beside: the default once another setting of the same part is set, where that differs: a part that a file has is
            filled up from its class.
        required: whether a file must have it.
        choices: all its values, where they can be told.
        section: of which part of a file, in a line.
        suite: whether it stands in a suite's file, not in a recipe.
    """

    key: str
    about: str
    takes: str
    default: Any
    required: bool
    choices: tuple[str, ...]
    section: str
    suite: bool = False
    beside: Any = None

    @property
    def typed(self) -> bool:
        """Whether a command line may have it."""
        return ENTRY not in self.key and (not self.suite or "." not in self.key)


@lru_cache(maxsize=1)
def settings() -> tuple[Setting, ...]:
    """All of them: a recipe's in the order of `Recipe`, then a suite's."""
    recipe = _Place("", None, "A recipe: mstdistill train RECIPE key=value ...", False)
    suite = _Place("", None, "A suite's file: mstdistill reproduce SUITE", True)
    return (*_walk(Recipe, recipe), *_walk(Suite, suite))


def one_line(field: FieldInfo) -> str:
    """What a field is; of a part with settings of its own the first line of its class."""
    if field.description:
        return field.description
    inner = part_of(field)
    return "" if inner is None else _first_line(inner)


def part_of(field: FieldInfo) -> type[Settings] | None:
    """The class of a field that is itself a group of settings."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def entries_of(field: FieldInfo) -> tuple[str, type[Settings]] | None:
    """Of a field that holds many groups of settings: what its key goes on with, and their class."""
    origin, inner, ends = get_origin(field.annotation), get_args(field.annotation), ""
    if origin is dict and get_origin(inner[-1]) is list:
        inner, ends = get_args(inner[-1]), ENTRY
    if not inner or not isinstance(inner[-1], type) or not issubclass(inner[-1], Settings):
        return None
    return (ENTRY if origin is list else f".{ANY}{ends}"), inner[-1]


def names_of(name: str, takes: Any) -> tuple[str, ...]:
    """The values of a field that can be told: of a Literal, and names that something was registered by."""
    kinds = _alternatives(takes)
    told = tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
    if told:
        return (("true", "false") if bool in kinds else ()) + told
    if kinds == [bool]:
        return ("true", "false")
    known = {
        "task": lambda: tuple(shipped().tasks), "method": lambda: tuple(METHODS),
        "backbone": lambda: tuple(shipped().backbones),
    }  # fmt: skip
    return known[name]() if name in known and str in kinds else ()


@dataclass(frozen=True)
class _Place:
    """Where in a file `_walk` is: what keys start with there, the part's default, of which section, in which file."""

    prefix: str
    values: Settings | None
    section: str
    suite: bool


def _walk(model: type[Settings], place: _Place) -> Iterator[Setting]:
    """The settings of a class, those of its parts after its own."""
    fields = model.model_fields.items()
    for name, field in sorted(fields, key=lambda item: not _single(item[1])):  # stable: else as they stand
        values, inner, entries = place.values, part_of(field), entries_of(field)
        own = field.get_default(call_default_factory=True)
        default = own if values is None else getattr(values, name)
        key = place.prefix + name
        if inner is not None:
            section = place.section if place.prefix else f"{key}: {one_line(field)}"
            yield from _walk(inner, _Place(f"{key}.", default if isinstance(default, Settings) else None, section,
                                           place.suite))  # fmt: skip
            continue
        section = place.section
        if entries is not None and not place.prefix:
            section = f"{place.suite * 'suite, '}{key}: {_first_line(entries[1])}"
        required, choices = values is None and field.is_required(), names_of(name, field.annotation)
        yield Setting(
            key, one_line(field), _takes(field, choices), None if required else default, required, choices,
            section, place.suite, own if own != default else None,
        )  # fmt: skip
        if entries is not None:
            yield from _walk(entries[1], _Place(f"{key}{entries[0]}.", None, section, place.suite))


def _single(field: FieldInfo) -> bool:
    return part_of(field) is None and entries_of(field) is None


def _first_line(model: type[Settings]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _takes(field: FieldInfo, choices: tuple[str, ...]) -> str:
    """Which values, in words."""
    kinds = _alternatives(field.annotation)
    none = "; or null" if type(None) in kinds else ""
    if choices and len(choices) <= 6:
        return " | ".join(choices) + none.replace("; or", " |")
    first = get_origin(kinds[0]) or kinds[0]
    if first in _NUMBERS:
        return _NUMBERS[first] + _bounds(field) + none
    if first is list:
        inner = get_args(kinds[0])[0]
        return {str: "a list of texts", int: "a list of whole numbers"}.get(inner, "a list") + none
    if first is dict:
        return "a mapping" + none
    return ("a name" if choices else "a text") + none


def _bounds(field: FieldInfo) -> str:
    """The range of a number, in words."""
    found = {
        kind: getattr(one, kind) for one in field.metadata for kind in ("ge", "gt", "le", "lt") if hasattr(one, kind)
    }
    low = f"{found['ge']} or more" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"{found['le']} at most" if "le" in found else f"below {found['lt']}" if "lt" in found else ""
    return ", " + ", ".join(filter(None, (low, high))) if low or high else ""


def _alternatives(annotation: Any) -> list[Any]:
    """The kinds of an annotation, without its union."""
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]
