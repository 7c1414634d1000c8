"""What each teacher itself, without masks, says of training instances: what a router reads that reads teachers.

Constants, as all that frozen networks say: a table, or live where none is possible. Of labelled instances it can be
what teachers say that never saw the label; see `folds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..data.feeding.batch import Batch
from ..experiment import Experiment
from ..informed_router import probabilities
from ..teachers.ensemble import Ensemble
from ..teachers.tap import Teacher
from . import folds
from .constant_logits import LogitSource, constant_logits


class Unmasked:
    """Logits of the T teachers of an ensemble of M members, without gradient.

    A mixed instance that teachers see as such (`augment.teachers: same`) goes by the fold of its own label.

    Attributes:
        source: where they come from.
        honest: whether those of labelled instances are of teachers that never saw the label.

    Args:
        masked: the ensemble's own logits, which are these where it has no masks.
    """

    def __init__(self, experiment: Experiment, ensemble: Ensemble, masked: LogitSource) -> None:
        self.experiment, self.ensemble = experiment, ensemble
        owners = [member.teacher for member in ensemble.members]
        # on the device: a recorded step copies nothing from the host
        self._owners = torch.tensor(owners, device=experiment.accelerator.device)
        self.honest = folds.count(experiment) > 0
        self.source = masked if not (self.honest or len(ensemble.masks)) else self._constants()

    def _constants(self) -> LogitSource:
        experiment, ensemble = self.experiment, self.ensemble
        modules: dict[str, nn.Module] = {f"teacher {t.name}": t.module for t in ensemble.teachers}
        apart: list[list[Teacher]] = []
        fold = torch.zeros(0)
        if self.honest:
            fold = torch.from_numpy(folds.cut(experiment)).to(experiment.accelerator.device)
            apart = folds.teachers(experiment)
            modules |= {f"{folds.stage_name(number)} {t.name}": t.module
                        for number, own in enumerate(apart, 1) for t in own}  # fmt: skip

        def forward(batch: Batch) -> Tensor:
            logits = each(ensemble.teachers, batch.inputs)
            for number, own in enumerate(apart, 1):
                rows = (fold[batch.index] == number).nonzero().squeeze(1)
                if len(rows):
                    logits[rows] = each(own, {name: x[rows] for name, x in batch.inputs.items()})
            return logits

        return constant_logits(
            experiment, "unmasked-train", forward, ensemble.modalities, "train", modules,
            (*(t.name for t in ensemble.teachers), len(apart), experiment.recipe.seed), experiment.recipe.distill.cache,
        )  # fmt: skip

    def logits(self, batch: Batch) -> Tensor:
        """[B, T, C, ...] in float32 or float64; zeros of a teacher that can't see an instance."""
        logits, seen = self.source.gather(batch), self.ensemble.see(batch.present)
        return logits if seen is None else logits.masked_fill(~seen.view(*seen.shape, *(1,) * (logits.dim() - 2)), 0.0)

    def read(self, logits: Tensor, batch: Batch) -> Tensor:
        """What a router reads of the batch's `logits`; see `probabilities`."""
        return probabilities(logits, self.ensemble.see(batch.present), self.experiment.task.multilabel)

    def of_members(self, logits: Tensor) -> Tensor:
        """[B, M, C, ...] for each member its teacher's."""
        return logits[:, self._owners]


def each(teachers: Sequence[Teacher], inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, T, C, ...] of a batch of named modalities."""
    return torch.stack([teacher.logits(inputs) for teacher in teachers], dim=1)
