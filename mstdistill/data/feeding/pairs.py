"""With whom a training instance is mixed (mixup; Zhang et al., ICLR 2018).

The partner is a position of the whole split, not of the batch: seed, epoch and the instance's own position alone draw
it, and with it the parts of the mixture. So an instance is mixed alike in any batch, on any rank, after any resumption;
the loader reads a second instance for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..augment.draws import Draws


@dataclass(frozen=True)
class Pairs:
    """Draws partners.

    Attributes:
        alpha: of the Beta(alpha, alpha) that an instance's own part is drawn from.
        seed: of the run.
    """

    alpha: float
    seed: int

    def of(self, count: int, epoch: int, told: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
        """[N] int64 partners' positions, and [N] float32 the instances' own parts.

        Args:
            told: each [N] bool, whether an instance has a label, a modality: it is mixed with one that has the same.
        """
        draws = Draws(self.seed, epoch, torch.arange(count), "mixup")
        own = _quantiles(self.alpha)[draws.of("part").levels(1)[:, 0].numpy()]
        kind, partner = np.zeros(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for number, values in enumerate(told):
            kind |= values.astype(np.int64) << number
        for rows in (np.flatnonzero(kind == one) for one in np.unique(kind)):
            place = Draws(self.seed, epoch, torch.from_numpy(rows), "partner").below(len(rows))[:, 0]
            partner[rows] = rows[place.numpy()]
        return partner, own


@lru_cache(maxsize=8)
def _quantiles(alpha: float) -> np.ndarray:
    """[65536] float32 of Beta(alpha, alpha), equally likely."""
    from scipy.special import betaincinv

    found: np.ndarray = betaincinv(alpha, alpha, (np.arange(2**16) + 0.5) / 2**16)
    return found.astype(np.float32)
