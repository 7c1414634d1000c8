"""Recipes: typed, validated, overridable. One truth for names, types, defaults and help.

A recipe is YAML; `load` merges a shipped recipe or a file with presets and `key=value` overrides (recipe_files.py), and
checks every key. Descriptions are shown by `mstdistill settings`, in recipes that `new` writes, and by editors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from .errors import ConfigError, nearest
from .presets import PRESETS as PRESETS
from .recipe_files import content_of
from .recipe_files import recipe_names as recipe_names
from .sections.augment import AugmentSettings
from .sections.comparison import AloneSettings, BaselineSettings
from .sections.data import DataSettings as DataSettings
from .sections.learning import OptimSettings as OptimSettings
from .sections.mask import MaskSettings as MaskSettings
from .sections.models import ModelSettings as ModelSettings
from .sections.models import Pairing as Pairing
from .sections.models import TeacherSettings as TeacherSettings
from .sections.routing import RoutingSettings as RoutingSettings
from .sections.run import RunSettings as RunSettings
from .sections.stages import CacheSettings as CacheSettings
from .sections.stages import CotrainSettings, DistillSettings, RoundsSettings, SpecialiseSettings
from .sections.stages import Decay as Decay
from .sections.task_loss import TaskLossSettings
from .strict import Settings as Settings

# What may differ where some training instances have no label: neither data nor networks.
PARTLY = ("temperature", "mask", "routing", "cotrain", "rounds", "specialise", "distill")


class Recipe(Settings):
    """A whole experiment."""

    later: ClassVar[tuple[str, ...]] = ("augment", "rounds", "partly", "task_loss")
    task: str = Field(description="whose data (see: mstdistill tasks); own: a user's own")
    target: str = Field(description="the modality that the student sees")
    method: str = Field("mst", description="mst: the three stages; or one of the comparison (docs/baselines.md)")
    seed: int = Field(0, ge=0, description="of the first weights, the order of the data and all else that is drawn")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="half precision in training; no: float32")
    batch_size: int = Field(64, ge=1, description="per process and micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step")
    temperature: float = Field(4.0, gt=0, description="that softens student's and teachers' logits in distillation")
    tf32: bool = Field(True, description="matrix products of float32 in TF32 on a GPU; false: strict float32")
    channels_last: bool = Field(False, description="convolutions in channels-last memory: the same sums, often faster")
    validation_mean: Literal["instances", "batches"] = Field(
        "instances", description="batches: the mean of the batch means, as the released code selects (quirk 7)"
    )
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    models: dict[str, Pairing] = Field(default_factory=dict, description="target -> the networks that train for it")
    task_loss: TaskLossSettings = TaskLossSettings()
    mask: MaskSettings = MaskSettings()
    routing: RoutingSettings = RoutingSettings()
    cotrain: CotrainSettings = CotrainSettings()
    rounds: RoundsSettings = RoundsSettings()
    specialise: SpecialiseSettings = SpecialiseSettings()
    distill: DistillSettings = DistillSettings()
    alone: AloneSettings = AloneSettings()
    baseline: BaselineSettings = BaselineSettings()
    partly: dict[str, Any] = Field(
        default_factory=dict, description="settings in the others' place where some training instances have no label: "
        + ", ".join(PARTLY)
    )  # fmt: skip
    run: RunSettings = RunSettings()

    @field_validator("precision", mode="before")
    @classmethod
    def _a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # as YAML reads a bare no

    @model_validator(mode="after")
    def _one_hot(self) -> Recipe:
        if self.data.several and self.task_loss.label_smoothing:
            raise ValueError("task_loss.label_smoothing spreads one true class over the others, and a multi-label "
                             "instance has several; leave it out")  # fmt: skip
        return self

    @property
    def pairing(self) -> Pairing:
        """The networks for this recipe's target.

        Raises:
            ConfigError: the recipe has none for it.
        """
        if self.target not in self.models:
            raise ConfigError(
                f"target {self.target!r}: the recipe has no models for it; {nearest(self.target, self.models)}"
            )
        return self.models[self.target]

    @property
    def each_round(self) -> RoundsSettings:
        """The rounds, with what they take from the co-training."""
        own, first = self.rounds, self.cotrain
        epochs, lr = own.epochs if own.epochs is not None else first.epochs, own.lr or first.lr
        return own.model_copy(update={"epochs": epochs, "lr": lr})

    @property
    def student_epochs(self) -> int:
        """Of the student in all stages of the method."""
        return self.cotrain.epochs + self.rounds.count * (self.each_round.epochs or 0) + self.distill.epochs

    def for_partly_labelled(self) -> Recipe:
        """With the settings of `partly` in the others' place."""
        content = self.model_dump()
        content.pop("partly", None)
        return Recipe.model_validate(_laid_over(content, self.partly))

    @model_validator(mode="after")
    def _can_be_laid_over(self) -> Recipe:
        if wrong := [key for key in self.partly if key not in PARTLY]:
            raise ValueError(f"partly.{wrong[0]}: settings of partly labelled data are of {', '.join(PARTLY)}")
        if self.partly:
            self.for_partly_labelled()
        return self

    def binding(self) -> dict[str, Any]:
        """What a run folder is bound to: everything that changes its numbers."""
        content = self.model_dump(exclude={"run": True, "models": True, "data": {"key"}})
        content["models"] = {self.target: self.pairing.model_dump()} if self.models else {}
        return content


def load(source: str, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> Recipe:
    """A recipe from a shipped name or a YAML file, with presets and overrides on top.

    Args:
        source: a name from `recipe_names()` or a path.
        overrides: "key=value" with dots for nesting; values are YAML.

    Raises:
        ConfigError: unknown recipe, preset or key, or a value of the wrong kind.
    """
    return parse(content_of(source, overrides, presets), source)


def parse(content: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe's content; see `load`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _laid_over(content: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top."""
    out = dict(content)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _laid_over(out[key], value) if both else value
    return out


def _explain(error: ValidationError) -> str:
    """The first mistake, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent = _settings_at(first["loc"][:-1])
        return f"unknown key {where!r}; {nearest(str(first['loc'][-1]), parent.model_fields)}"
    if first["type"] == "missing":
        return f"key {where!r} is missing"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"
    return f"{where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _settings_at(loc: Sequence[int | str]) -> type[Settings]:
    current: Any = Recipe
    for part in loc:
        if isinstance(current, type) and issubclass(current, Settings):
            current = current.model_fields[str(part)].annotation
        else:  # a dict or list of settings
            current = current.__args__[-1]
    return current if isinstance(current, type) and issubclass(current, Settings) else Recipe
