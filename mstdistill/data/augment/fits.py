"""Which change fits which modality: by its kind where that is known, and by the form of its tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import ConfigError
from ...sections.augment import Change
from ..task import Form

PICTURES, SOUNDS, VALUES, WORDS = ("image",), ("audio",), ("image", "audio", "array"), ("text",)


@dataclass(frozen=True)
class _Needs:
    """What a change is for.

    Attributes:
        kinds: of modalities.
        form: the last axes of a tensor, without the batch, in words.
        axes: how many there must be.
        moves: whether pixels change their place.
        sizes: of the last axes that must be larger than the change's number, from the end.
    """

    kinds: Sequence[str]
    form: str
    axes: int
    moves: bool = False
    size: int = 0


NEEDS: Mapping[str, _Needs] = {
    "crop": _Needs(PICTURES, "[..., height, width]", 3, moves=True),
    "flip": _Needs(PICTURES, "[..., height, width]", 3, moves=True),
    "turn": _Needs(PICTURES, "[..., height, width]", 3, moves=True),
    "erase": _Needs(PICTURES, "[..., height, width]", 3),
    "mask_frequency": _Needs(SOUNDS, "a spectrogram", 2, size=-2),
    "mask_time": _Needs(SOUNDS, "a spectrogram", 2, size=-1),
    "shift": _Needs(SOUNDS, "[..., time]", 1),
    "noise": _Needs(VALUES, "numbers", 1),
    "word_dropout": _Needs(WORDS, "tokens, or embedded words [words, width]", 1),
}


def check(modality: str, change: Change, form: Form, sample: Tensor, dense: bool) -> None:
    """Whether a change fits a modality.

    Args:
        sample: [B, ...] as networks take it.
        dense: labels are maps.

    Raises:
        ConfigError: it doesn't.
    """
    needs, shape = NEEDS[change.name], laid(sample, form).shape[1:]
    where = f"augment.modalities.{modality}: {change.name}"
    if form.kind and form.kind not in needs.kinds:
        fitting = ", ".join(name for name, one in NEEDS.items() if form.kind in one.kinds)
        raise ConfigError(f"{where} is for {' and '.join(needs.kinds)}, and {modality} is {form.kind}; "
                          f"what fits it: {fitting}")  # fmt: skip
    words = change.name == "word_dropout"
    axes = 2 if words and sample.is_floating_point() else needs.axes
    if len(shape) < axes or (not words and not sample.is_floating_point()):
        held = "" if sample.is_floating_point() else "whole numbers "
        raise ConfigError(f"{where} takes {needs.form}, and {modality} is {held}{list(sample.shape[1:])}")
    limit = shape[needs.size] if needs.size else min(shape[-2:]) if change.name == "crop" else None
    if limit is not None and change.amount >= limit:
        raise ConfigError(f"{where}={change.amount:g}: {modality} is {list(sample.shape[1:])}; give less than {limit}")
    if dense and needs.moves:
        raise ConfigError(f"{where} moves pixels, and the labels are maps, whose pixels would stay; leave it out")


def check_mixture(modality: str, form: Form, sample: Tensor, dense: bool) -> None:
    """Whether instances can be mixed in a modality.

    Args:
        sample: [B, ...] as networks take it.
        dense: labels are maps.

    Raises:
        ConfigError: they can't.
    """
    if dense:
        raise ConfigError("augment.mixup mixes classes, and the labels are maps; leave it out")
    if not sample.is_floating_point() or form.rows:
        held = "comes with a mask of its padding" if sample.is_floating_point() else "is whole numbers"
        raise ConfigError(f"augment.mixup: {modality} {held}, of which a mixture means nothing; leave it out")


def laid(x: Tensor, form: Form) -> Tensor:
    """A batch of a modality with time as its last axis; a view."""
    return x if form.time == -1 else x.movedim(form.time, -1)
