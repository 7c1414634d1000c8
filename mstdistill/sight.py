"""Which instances a run's networks can see, where some lack a modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .data.feeding.batch import Batch
from .data.present import completeness, presence, see, told, with_target
from .data.split import Split
from .data.view import modality_of
from .errors import DataError
from .teachers.tap import Teacher

# Which instances lack the target, in the run's folder.
LEFT_OUT = "left_out.json"


def complete(
    splits: dict[str, Split], teachers: Sequence[Teacher], target: str, task: str, say: Callable[[str], None]
) -> dict[str, list[str]]:
    """Leave out instances without the target and say how complete the others are.

    Returns:
        How a person finds those that were left out, by split.

    Raises:
        DataError: a network sees no instance of the training or the validation data.
    """
    found: dict[str, list[str]] = {}
    for name, split in splits.items():
        called = f"{task} {name}"
        splits[name], left = with_target(split, target, called)
        if left:
            found[name] = left
            say(told(left, target, called) + f"; all are in the run's {LEFT_OUT}")
        for line in completeness(splits[name], called):
            say(line)
        for teacher in teachers if name != "test" else ():
            seen = teacher.sees(_tensors(splits[name]))
            if seen is not None and not seen.any():
                wanted = " and ".join(map(modality_of, teacher.modalities))
                raise DataError(f"{called}: no instance has {wanted}, which teacher {teacher.name!r} sees; leave the "
                                "teacher out")  # fmt: skip
    return found


def sees_all(teacher: Teacher, split: Split) -> bool:
    """Whether a teacher can see every instance."""
    seen = teacher.sees(_tensors(split))
    return seen is None or bool(seen.all())


def sight(teachers: Sequence[Teacher], module: nn.Module, view: Sequence[str]) -> Callable[[Batch], Tensor | None]:
    """From a batch to the instances [B] that a network can see; None: all."""
    some = _lenient(teachers, module)
    return lambda batch: see(batch.present, view, some)


def shows(teachers: Sequence[Teacher], module: nn.Module, view: Sequence[str], split: Split) -> bool:
    """Whether a network sees any instance of a split."""
    seen = see(_tensors(split), view, _lenient(teachers, module))
    return seen is None or bool(seen.any())


def _lenient(teachers: Sequence[Teacher], module: nn.Module) -> bool:
    return any(teacher.module is module and teacher.missing == "zero" for teacher in teachers)


def _tensors(split: Split) -> Mapping[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in presence(split).items()}
