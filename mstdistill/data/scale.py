"""From stored values to what networks take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """From stored values to float32; with `low` and `spread` scaled to [0, 1] by the data's least and greatest ones."""

    low: Tensor | None = None
    spread: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Values [B, ...] as float32 on their device; float32 without a scale is passed on."""
        real = values.float()
        if self.low is None or self.spread is None:
            return real
        real = real.clone() if real is values else real
        return real.sub_(self.low.to(real.device)).div_(self.spread.to(real.device))
