"""Recipes as they are written: shipped ones and files, with presets and `key=value` on top; nothing is checked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, nearest
from .presets import PRESETS


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        path.name[:-5] for path in resources.files("mstdistill.recipes").iterdir() if path.name.endswith(".yaml")
    )


def content_of(source: str, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's content; see `config.load`.

    Raises:
        ConfigError: unknown recipe or preset, or no YAML.
    """
    content = _read(source)
    for preset in presets:
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}; {nearest(preset, PRESETS)}")
        content = _merge(content, PRESETS[preset])
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write key=value, for example distill.epochs=20")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {value!r} is not valid YAML") from None
        content = _merge(content, _nested(key.strip().split("."), parsed))
    return content


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if source in recipe_names():
        text = resources.files("mstdistill.recipes").joinpath(f"{source}.yaml").read_text()
    elif path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(f"{source}: can't be read ({error.strerror})") from None
    else:
        raise ConfigError(f"unknown task or recipe {source!r}; {nearest(source, recipe_names())}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of settings")
    return content


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
