"""Random numbers of an instance: functions of (seed, epoch, position in the split, purpose) alone.

Who draws beside it, in which batch, on which rank or device and after what, changes none of its bits: each number is a
hash (SplitMix64, Steele et al., 2014) of a counter. Floats are made of integers exactly, and what isn't a sum, a
product or a comparison comes from a table: rounding differs between devices and vector widths, a look-up doesn't.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_LEVELS = 2**16


def _signed(number: int) -> int:
    """The int64 with the bits of a 64-bit number: tensors have no unsigned ones that multiply."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


_STEP, _FIRST, _SECOND = (_signed(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 of any shape; x is overwritten."""
    for by, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        x ^= (x >> by) & ((1 << (64 - by)) - 1)  # int64 shifts its sign along
        if factor != 1:
            x *= factor
    return x


@dataclass(frozen=True)
class Draws:
    """The numbers of a batch's instances.

    Attributes:
        seed, epoch: of the run.
        index: [B] int64 positions in the split.
        purpose: other purposes have other numbers.
    """

    seed: int
    epoch: int
    index: Tensor
    purpose: str = ""

    def of(self, purpose: str) -> Draws:
        """Other numbers of the same instances."""
        return Draws(self.seed, self.epoch, self.index, f"{self.purpose}/{purpose}")

    def words(self, count: int) -> Tensor:
        """[B, count] int64 of 64 random bits."""
        start = mixed(mixed(self.index + _key(self.seed, self.purpose)) + _signed(self.epoch * _STEP))
        return mixed(start.unsqueeze(1) + _STEP * torch.arange(1, count + 1, device=start.device))

    def uniform(self, count: int) -> Tensor:
        """[B, count] float32 in [0, 1)."""
        return ((self.words(count) >> 40) & (2**24 - 1)).float() / 2**24

    def below(self, *limits: int | Tensor) -> Tensor:
        """[B, len(limits)] int64 in [0, limit); limits, numbers or [B], are below 2^31."""
        halves = (self.words(len(limits)) >> 32) & (2**32 - 1)
        parts = [(half * limit) >> 32 for half, limit in zip(halves.unbind(1), limits, strict=True)]
        return torch.stack(parts, dim=1)

    def levels(self, count: int) -> Tensor:
        """[B, count] int32 in [0, 65536): four of a word."""
        words = self.words(-(-count // 4)).view(torch.int16)[:, :count]
        return words.int() + _LEVELS // 2

    def normal(self, count: int, deviation: float, dtype: torch.dtype) -> Tensor:
        """[B, count] normal numbers, of 65,536 values that are equally likely."""
        table = _normal(deviation, dtype, self.index.device)
        return table.index_select(0, self.levels(count).flatten()).view(-1, count)


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(repr((seed, purpose)).encode()).digest()
    return _signed(int.from_bytes(digest[:8], "little"))


@lru_cache(maxsize=64)
def _normal(deviation: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[65536] quantiles."""
    middle = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    return (torch.special.ndtri(middle) * deviation).to(dtype).to(device)
