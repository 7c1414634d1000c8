"""A run's augmentation: made from its recipe, checked against its networks, and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .config import Recipe
from .data.augment.plan import Augmentation
from .data.task import Task
from .engine.seeding import named_seed
from .errors import ConfigError

_SAID = {"clean": "as the data have it", "same": "as the student sees it", "views": "in views that the student sees "
         "in turn"}  # fmt: skip


def teaching(recipe: Recipe) -> str:
    """How frozen networks that see the target see training instances: `augment.teachers`, where it makes a difference,
    else "clean"."""
    changed = recipe.augment.modalities.get(recipe.target) or recipe.augment.mixup is not None
    return recipe.augment.teachers if changed else "clean"


def plan_augmentation(
    recipe: Recipe, task: Task, seeing: Sequence[str], samples: Callable[[], Mapping[str, Tensor]], dense: bool,
    say: Callable[[str], None],
) -> Augmentation | None:  # fmt: skip
    """How training instances are changed; None: they aren't.

    Args:
        seeing: teachers that see the target.
        samples: gives a few instances of every view that a network sees, as networks take them.
        dense: labels are maps.

    Raises:
        ConfigError: what the recipe wants doesn't fit the task or its modalities.
    """
    settings = recipe.augment
    if not settings.wanted:
        return None
    found = Augmentation(settings, named_seed(recipe.seed, "augment"), task.forms, samples(), dense)
    if settings.mixup is not None and task.ignore_index is not None:
        raise ConfigError("augment.mixup: a label that doesn't count can't be mixed with one that does; leave it out")
    if settings.teachers == "views" and not seeing:
        raise ConfigError(f"augment.teachers=views: no teacher sees {recipe.target}, so what they say of an instance "
                          "stays as it is; leave it out")  # fmt: skip
    say(f"augmentation: {found.about()}")
    if seeing and (recipe.target in settings.modalities or settings.mixup is not None):
        say(f"teachers that see {recipe.target} ({', '.join(seeing)}) see it {_SAID[settings.teachers]} "
            f"(augment.teachers={settings.teachers})")  # fmt: skip
    return found
