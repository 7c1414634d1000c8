"""A recipe's augmentation: from a batch's inputs to changed ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from ...errors import ConfigError, nearest
from ...sections.augment import AugmentSettings, Change
from ..task import Form
from ..view import modality_of
from . import pictures, sounds, words
from .draws import Draws
from .fits import NEEDS, SOUNDS, check, check_mixture, laid

_CHANGES: Mapping[str, Callable[[Tensor, float, Draws], Tensor]] = {
    "crop": pictures.crop,
    "flip": pictures.flip,
    "turn": pictures.turn,
    "erase": pictures.erase,
    "mask_frequency": sounds.mask_frequency,
    "mask_time": sounds.mask_time,
    "shift": sounds.shift,
    "noise": sounds.noise,
}


class Augmentation:
    """Changes inputs of training instances; the same instance in the same epoch always alike.

    Args:
        seed: of the run.
        forms: how views, or modalities, are laid out, where that is known.
        samples: view -> [B, ...], a few instances as networks take them.
        dense: labels are maps.

    Raises:
        ConfigError: a modality that no network sees, or a change that doesn't fit its modality.
    """

    def __init__(
        self, settings: AugmentSettings, seed: int, forms: Mapping[str, Form], samples: Mapping[str, Tensor],
        dense: bool,
    ) -> None:  # fmt: skip
        self.settings, self.seed = settings, seed
        self.forms = {view: forms.get(view) or forms.get(modality_of(view)) or Form() for view in samples}
        seen = {modality_of(view) for view in samples}
        for modality in settings.modalities:
            if modality not in seen:
                raise ConfigError(f"augment.modalities.{modality}: no network sees such a modality; "
                                  f"{nearest(modality, seen)}")  # fmt: skip
        for view, sample in samples.items():
            for change in self._changes(view):
                check(modality_of(view), change, self.forms[view], sample, dense)
            if settings.mixup is not None:
                check_mixture(modality_of(view), self.forms[view], sample, dense)

    def _changes(self, view: str) -> list[Change]:
        return self.settings.modalities.get(modality_of(view), [])

    @torch.no_grad()
    def __call__(
        self, inputs: Mapping[str, Tensor], index: Tensor, epoch: int, views: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Inputs [B, ...] changed; what is given stays as it is.

        Args:
            index: [B] positions in the split.
            views: change these alone; None: all.
        """
        return {
            view: self._changed(view, x, index, epoch) if views is None or view in views else x
            for view, x in inputs.items()
        }

    def _changed(self, view: str, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        # what two networks see of a modality through processors of their own is changed alike
        draws = Draws(self.seed, epoch, index, modality_of(view))
        for number, change in enumerate(self._changes(view)):
            x = self._one(change, x, self.forms[view], draws.of(f"{number} {change.name}"))
        return x

    def _one(self, change: Change, x: Tensor, form: Form, draws: Draws) -> Tensor:
        if change.name == "word_dropout":
            return words.word_dropout(x, change.amount, draws, form.rows)
        make = _CHANGES[change.name]
        if NEEDS[change.name].kinds != SOUNDS and not form.rows:
            return make(x, change.amount, draws)
        turned = laid(x, form)
        if form.rows and change.name != "shift":  # a mask says what is padding: it moves with the sound, no more
            found = turned.clone()
            for row, name in enumerate(form.rows):
                if not name.endswith("mask"):
                    found[:, row] = make(turned[:, row], change.amount, draws)
        else:
            found = make(turned, change.amount, draws)
        return found if form.time == -1 else found.movedim(-1, form.time)

    def about(self) -> str:
        """The changes, for people."""
        parts = []
        for modality, changes in self.settings.modalities.items():
            if changes:
                named = ", ".join(f"{change.name} {change.amount:g}" for change in changes)
                parts.append(f"{modality}: {named}")
        if self.settings.mixup is not None:
            parts.append(f"mixup {self.settings.mixup:g}")
        return "; ".join(parts)
