"""The settings for people and programs: lines for a terminal, JSON, a page of Markdown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from ..errors import ConfigError, nearest
from ..markup import plain
from .changes import changes, setting_of
from .keys import Setting, settings

_PAGE = """# Every setting

Written by `mstdistill settings --markdown` from the descriptions in `mstdistill/config.py`,
`mstdistill/sections/` and `mstdistill/suite/plan.py`. In a terminal `mstdistill settings WORD` finds those
with WORD in their key or description; `mstdistill new NAME --task TASK` writes a recipe with all of them; editors that
know JSON schemas check and complete recipes by `mstdistill/recipes/schema.json`.

A key is typed as it stands (`mstdistill train av-digits distill.epochs=20`) or nested in a file; `TARGET` is the name
of a modality; `null` stands for no value. Keys with `[]` belong to the entries of a list and are written in a file, or
with the whole list. A default "beside others of its part" holds where a recipe sets another key of the same part.
"""


def find(word: str | None) -> list[Setting]:
    """The settings with a word in their key, their description or their values; without a word all.

    Raises:
        ConfigError: none has it; the message lists the nearest.
    """
    if word is None:
        return list(settings())
    key = word.partition("=")[0].strip().lower()
    exact = setting_of(key)
    found = [one for one in settings() if one == exact or any(key in text.lower() for text in _texts(one))]
    if not found:
        keys = [one.key for one in settings()]
        words = {part.strip(".,;:()'") for one in settings() for part in one.about.lower().split()}
        words |= {last.rpartition(".")[2] for last in keys}
        near = nearest(key, {*keys, *(one for one in words if len(one) > 3)})
        raise ConfigError(f"no setting has {word!r} in its key or description; {near}")
    return found


def _texts(setting: Setting) -> Sequence[str]:
    return (setting.key, setting.about, *setting.choices)


def yaml_text(value: Any) -> str:
    """A value on one line of YAML."""
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)).removesuffix("...\n").strip()
    )


def default_text(setting: Setting) -> str:
    """The default in words and YAML."""
    if setting.required:
        return "must be given"
    if setting.default in setting.choices:
        return str(setting.default)
    beside = f" ({yaml_text(setting.beside)} beside others of its part)" if setting.beside is not None else ""
    return yaml_text(setting.default) + beside


def _changed(by: Mapping[str, tuple[Any, ...]]) -> str:
    """Who changes a setting to what, equal ones together."""
    to: dict[str, list[str]] = {}
    for who, values in by.items():
        to.setdefault(", ".join(map(yaml_text, values)), []).append(who)
    return "; ".join(f"{values} ({', '.join(names)})" for values, names in to.items())


def lines(found: Iterable[Setting], width: int = 120) -> list[str]:
    """For a terminal: a key with its default and values, what it is, who changes it."""
    shown: list[str] = []
    for section, group in groupby(found, key=lambda one: one.section):
        shown += ["", section, ""] if shown else [section, ""]
        for one in group:
            shown.append(f"  {one.key} = {default_text(one)}    [{one.takes}]")
            more = [one.about]
            if one.choices and one.takes.startswith("a name"):
                more.append("names: " + ", ".join(one.choices))
            by = {} if one.suite else changes().get(one.key, {})
            if by and not one.required:
                more.append(f"changed to {_changed(by)}")
            for text in more:
                shown += textwrap.wrap(text, max(40, width), initial_indent=" " * 6, subsequent_indent=" " * 8)
    return shown


def as_json(found: Iterable[Setting]) -> str:
    """For programs: a list of objects."""
    rows = [{
        "key": one.key, "file": "suite" if one.suite else "recipe", "command_line": one.typed, "about": one.about,
        "takes": one.takes, "choices": list(one.choices), "required": one.required, "default": one.default,
        "changed_by": {} if one.suite else {who: list(values) for who, values in changes().get(one.key, {}).items()},
    } for one in found]  # fmt: skip
    return json.dumps(rows, indent=1)


def markdown(found: Sequence[Setting]) -> str:
    """A page: a table of each section, and one of what recipes change."""
    parts = [_PAGE]
    for section, group in groupby(found, key=lambda one: one.section):
        rows = [[f"`{one.key}`", _code(default_text(one)), plain(one.takes), plain(one.about)] for one in group]
        parts.append(f"## {plain(section)}\n\n{_table(['key', 'default', 'values', 'what'], rows)}\n")
    rows = [
        [f"`{key}`", plain(_changed(by))]
        for key, by in changes().items()
        if not key.startswith("models") and key != "task"
    ]
    parts.append(f"## What recipes and presets change\n\n{_table(['key', 'to'], rows)}\n")
    return "\n".join(parts)


def _code(text: str) -> str:
    """A default: its value as code, the rest as words."""
    value, space, rest = text.partition(" (")
    if text == "must be given":
        return text
    return (f"`{value}`" if value not in ("null", "''", "[]", "{}") else "") + space + rest


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
