"""A recipe to start from: every setting with what it means, those at their default commented out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..config import ModelSettings, Pairing, Recipe, Settings
from ..errors import ConfigError, nearest
from ..shipped import shipped
from .keys import one_line, part_of
from .schema import SCHEMA, modeline
from .show import yaml_text

_WIDTH = 120
_COMMENTS_AT = 36
# of a model that the user has to name
UNNAMED = "org/name"
_WORDS = {
    "image": ("image", "picture", "photo", "visual", "rgb"),
    "text": ("text", "caption", "sentence"),
    "audio": ("audio", "sound", "speech", "voice", "music"),
}
_STUDENTS = {
    "image": "facebook/deit-tiny-patch16-224", "text": "distilbert/distilbert-base-uncased",
    "audio": "openai/whisper-tiny",
}  # fmt: skip
_TEACHERS: dict[str, dict[str, Any]] = {
    "image": {"hf": "google/vit-base-patch16-224", "taps": ["model.vit"]},
    "text": {"hf": "google-bert/bert-base-uncased", "max_length": 64, "taps": ["model.pooler"]},
    "audio": {"hf": "laion/clap-htsat-unfused", "taps": ["joined", "fc1"]},
}


@dataclass
class Start:
    """What a recipe is to be for.

    Attributes:
        task: a task's name; own: a user's own data.
        target: the modality that the student sees; none: the recipe's, or the first.
        data: folder, file or hub:org/name.
        label: own: the column of the classes.
        modalities: own: NAME, or NAME=COLUMN.
    """

    task: str
    target: str | None = None
    data: str | None = None
    label: str | None = None
    modalities: Sequence[str] = field(default_factory=list)

    def recipe(self) -> Recipe:
        """The recipe.

        Raises:
            ConfigError: an unknown task or target, or an option that the task doesn't have.
        """
        shipped().task(self.task)
        return self._own() if self.task == "own" else self._published()

    def _published(self) -> Recipe:
        for name in ("label", "modality"):
            if getattr(self, "modalities" if name == "modality" else name):
                raise ConfigError(f"--{name} goes with --task own: the columns of {self.task} are known")
        found = config.load(self.task, [f"data.dir={self.data}"] if self.data else [])
        return self._seeing(found, list(found.models))

    def _own(self) -> Recipe:
        columns = dict(_column(one) for one in self.modalities or ("image", "text"))
        if len(columns) < 2:
            raise ConfigError("--modality: name two or more, one for the student and others for teachers")
        target = self._target(list(columns))
        others = [name for name in columns if name != target]
        models = {name: _TEACHERS.get(_kind(name) or "", {"hf": UNNAMED}) for name in others}
        teachers = [{"name": name, "modalities": [name], **model} for name, model in models.items()]
        return config.parse({
            "task": "own", "target": target, "batch_size": 32,
            "data": {"dir": self.data or "data/my-data", "label": self.label or "label", "columns": columns},
            "models": {target: {"student": {"hf": _STUDENTS.get(_kind(target) or "", UNNAMED)}, "teachers": teachers}},
            "mask": {"hidden": 12},
            "cotrain": {"epochs": 3, "lr": 2e-5, "optimizer": "adamw", "warmup_steps": 50, "select": "best"},
            "specialise": {"epochs": 2},
            "distill": {"epochs": 20, "optimizer": "adamw"},
        })  # fmt: skip

    def _seeing(self, recipe: Recipe, known: Sequence[str]) -> Recipe:
        return recipe.model_copy(update={"target": self._target(known, recipe.target)})

    def _target(self, known: Sequence[str], default: str | None = None) -> str:
        target = self.target or default or known[0]
        if target not in known:
            raise ConfigError(f"--target {target}: {self.task} has no such modality; {nearest(target, known)}")
        return target


def recipe_text(recipe: Recipe, name: str) -> str:
    """A recipe with every setting and its line; the same as `recipe` when it is read, whatever is uncommented."""
    top = [
        modeline(str(SCHEMA)),
        f"# What it comes to: mstdistill train {name} --dry-run. More on a setting: mstdistill settings WORD.",
        "# Lines that begin with # and a key hold the default; take the # away to change them.",
    ]
    return "\n".join([*top, *_part(recipe, Recipe(task="", target=""), 0)]) + "\n"


def _part(part: Settings, usual: Settings, depth: int, off: bool = False) -> list[str]:
    """The lines of a group of settings; its own groups after the rest.

    Args:
        usual: the same group with every setting at its default.
        off: all of it is commented out.
    """
    lines: list[str] = []
    fields = type(part).model_fields
    for name, one in sorted(fields.items(), key=lambda item: part_of(item[1]) is not None):
        value, default, about = getattr(part, name), getattr(usual, name), one_line(one)
        given = value.model_fields_set if isinstance(value, Settings) else name in part.model_fields_set
        same = off or (value == default and not given)
        if name == "models" and value:
            lines += _models(value, about)
        elif not isinstance(value, Settings):
            lines += _line(name, yaml_text(value), about, depth, same)
        elif default != type(default)():  # one left out would be the class's, not this one: they stay together
            lines += _line(name, yaml_text(value.model_dump()), about, depth, same)
        else:
            lines += [""] * (depth == 0) + _line(name, "", about, depth, same)
            lines += _part(value, default, depth + 1, same)
    return lines


def _models(models: Mapping[str, Pairing], about: str) -> list[str]:
    """The lines of the networks: what they have, not what they could have."""
    lines = ["", *_line("models", "", f"{about}; more keys: mstdistill settings models", 0)]
    fields = Pairing.model_fields
    for target, pairing in models.items():
        lines += _line(yaml_text(target), "", "what trains where the student sees this", 1)
        lines += _line("student", "", one_line(fields["student"]), 2) + _network(pairing.student, 3)
        lines += _line("teachers", "", one_line(fields["teachers"]), 2)
        for teacher in pairing.teachers:
            first, *rest = _network(teacher, 4)
            lines += [first[:6] + "- " + first[8:], *rest]
    return lines


def _network(network: ModelSettings, depth: int) -> list[str]:
    fields = type(network).model_fields
    given = [name for name, one in fields.items()
             if one.is_required() or getattr(network, name) != one.get_default(call_default_factory=True)]  # fmt: skip
    lines: list[str] = []
    for name in sorted(given, key=lambda one: one != "name"):
        about = one_line(fields[name])
        if getattr(network, name) == UNNAMED:
            about = f"name one: {about}"
        lines += _line(name, yaml_text(getattr(network, name)), about, depth)
    return lines


def _line(key: str, value: str, about: str, depth: int, off: bool = False) -> list[str]:
    """A setting with its comment beside it, or below it where it is long."""
    text = "#" * off + "  " * depth + f"{key}: {value}".rstrip()
    beside = f"{text:<{_COMMENTS_AT}}  # {about}"
    if len(beside) <= _WIDTH:
        return [beside]
    start = " " * max(len(text) + 2, _COMMENTS_AT + 2)
    if len(start) > _WIDTH // 2:
        return [f"{text}  # {about}"]
    first, *rest = textwrap.wrap(about, _WIDTH - len(start) - 2)
    return [f"{text:<{_COMMENTS_AT}}  # {first}", *(f"{start}# {line}" for line in rest)]


def _column(given: str) -> tuple[str, str]:
    """Modality and column of NAME or NAME=COLUMN."""
    name, equals, column = given.partition("=")
    if not name or (equals and not column):
        raise ConfigError(f"--modality {given!r}: give NAME, or NAME=COLUMN")
    return name, column or name


def _kind(modality: str) -> str | None:
    """What a modality's name says that it is."""
    return next((kind for kind, words in _WORDS.items() if any(word in modality.lower() for word in words)), None)
