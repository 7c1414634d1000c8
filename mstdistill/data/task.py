"""Tasks: named modalities, classes and a source. One file per data set defines `TASK`; a task knows no method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Checking, Option

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")
Raw = Callable[[Any, Mapping[str, Any]], "np.ndarray"]


@dataclass(frozen=True)
class Form:
    """How a modality lies in its tensor, where that is known.

    Attributes:
        kind: "image", "audio", "text", "array"; empty: not known.
        time: the axis of time, from the end.
        rows: what the rows of a processor's packed tensor are (see `Port`); empty: it isn't packed.
    """

    kind: str = ""
    time: int = -1
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a data set asks for.

    Attributes:
        name: as recipes and the command line call it.
        title: one line for people.
        modalities: name -> shape without the batch; None: any length, the prepared data say which.
        num_classes: labels are 0 to num_classes - 1.
        class_names: for tables.
        ignore_index: a label that doesn't count, for dense tasks.
        options: settings of `prepare`, named as its keywords.
        prepare: makes the data in a folder; called with it, whom to tell, and options, which are checked before it does
            anything; none for a user's own data.
        multilabel: whether an instance may have several classes at once: labels are 0, 1 or -1 (not known) a class.
        embedded: needs no files: prepared by itself on first use.
        version: changes when `prepare` makes other data from the same settings.
        forms: how modalities, or views of them, lie in their tensors, where that is known.
        raw: from what a person draws (a PIL picture) or records (samples [n], rate) to a modality's tensor, for those
            that have such a way; called with the value and the prepared data's card, raises DataError.
    """

    name: str
    title: str
    modalities: Mapping[str, tuple[int | None, ...]]
    num_classes: int
    prepare: Callable[..., Path] | None = None
    class_names: tuple[str, ...] = ()
    ignore_index: int | None = None
    embedded: bool = False
    version: int = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    multilabel: bool = False
    forms: Mapping[str, Form] = field(default_factory=dict)
    raw: Mapping[str, Raw] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prepare is not None:
            object.__setattr__(self, "prepare", Checking(self.name, self.prepare, self.options))
