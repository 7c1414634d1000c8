"""Who changes a setting: the shipped recipes and the presets, and to what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .. import config
from ..config import Settings
from ..presets import PRESETS
from .keys import ANY, ENTRY, Setting, settings


@lru_cache(maxsize=1)
def changes() -> dict[str, dict[str, tuple[Any, ...]]]:
    """Key -> recipe or preset -> the values that differ from the default; several where a file has it several times."""
    defaults = {one.key: one.default for one in settings() if not one.suite}
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name in config.recipe_names():
        _note(found, name, _values(config.load(name), ""), defaults)
    for name, content in PRESETS.items():
        _note(found, f"preset {name}", _written(content, ""), defaults)
    return {key: found[key] for key in defaults if key in found}


def setting_of(key: str) -> Setting | None:
    """The setting that a key names, `models.image.student.hf` as well as `models.TARGET.student.hf`."""
    return next((one for one in settings() if _pattern(one.key).fullmatch(key)), None)


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(ANY, r"[^.]+"))


def _note(
    found: dict[str, dict[str, tuple[Any, ...]]],
    who: str,
    values: Iterator[tuple[str, Any]],
    defaults: Mapping[str, Any],
) -> None:
    for key, value in values:
        if key in defaults and value != defaults[key]:
            before = found.setdefault(key, {}).get(who, ())
            found[key][who] = before if value in before else (*before, value)


def _values(part: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    """Key and value of everything in a recipe; a list or mapping of parts goes by its parts alone."""
    for name in type(part).model_fields:
        value, key = getattr(part, name), prefix + name
        if isinstance(value, Settings):
            yield from _values(value, f"{key}.")
        elif isinstance(value, Mapping) and any(isinstance(one, Settings) for one in value.values()):
            for one in value.values():
                yield from _values(one, f"{key}.{ANY}.")
        elif isinstance(value, list) and any(isinstance(one, Settings) for one in value):
            for one in value:
                yield from _values(one, f"{key}{ENTRY}.")
        else:
            yield key, value


def _written(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Key and value of everything in a preset."""
    for name, value in content.items():
        key = prefix + name
        if isinstance(value, Mapping) and setting_of(key) is None:
            yield from _written(value, f"{key}.")
        else:
            yield key, value
