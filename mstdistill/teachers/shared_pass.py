"""One forward pass of a teacher for several of its specialised variants.

Variants differ only from their taps on: at a tap the batch grows by a copy of the rows that go on with the mask, and
what follows treats the variants as one larger batch. Where not every instance wants every variant, a block holds the
rows of those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tap import Teacher, hooked


class RowsMixed(Exception):
    """The batch axis no longer counts instances after a tap."""


@dataclass(frozen=True)
class Variant:
    """A specialised teacher in a shared pass.

    Attributes:
        tap: where its mask sits.
        mask: on the feature there.
        before: the variants whose masks act too when it runs, itself included.
    """

    tap: str
    mask: Callable[[Tensor], Tensor]
    before: frozenset[int]


@dataclass
class _Block:
    """Rows of the grown batch: `variants` have been one until here, `rows` [R] are the instances; None: all."""

    variants: list[int]
    rows: Tensor | None


def shared_pass(
    teacher: Teacher, variants: Sequence[Variant], inputs: Mapping[str, Tensor], wanted: Tensor | None = None
) -> list[tuple[Tensor | None, Tensor]]:
    """Logits of each variant.

    Args:
        variants: in the order of the taps.
        wanted: [B, variants] of booleans: which instances want which variant; None: all want all.

    Returns:
        For each variant its instances' positions [R] (None: all of them) and their logits [R, C, ...].

    Raises:
        RowsMixed: rows no longer count instances.
    """
    batch = next(iter(inputs.values())).shape[0]
    blocks = [_Block(list(range(len(variants))), None)]

    def at_tap(tap: str) -> Callable[[Tensor], Tensor]:
        def change(feature: Tensor) -> Tensor:
            for number, variant in enumerate(variants):
                if variant.tap == tap:
                    feature = split(number, feature)
            return feature

        return change

    def split(masked: int, feature: Tensor) -> Tensor:
        nonlocal blocks
        grown, after = [], []
        for block, rows in zip(blocks, _parts(feature, blocks, batch), strict=True):
            on = [v for v in block.variants if masked in variants[v].before]
            for kept in ([v for v in block.variants if v not in on], on):
                if kept:
                    part, own = _narrowed(block, kept, wanted)
                    x = rows if part is None else rows[part]
                    grown.append(variants[masked].mask(x) if kept is on and len(x) else x)
                    after.append(_Block(kept, own))
        blocks = after
        return torch.cat(grown)

    with hooked(teacher.module, {v.tap: at_tap(v.tap) for v in variants}, f"teacher {teacher.name!r}"):
        logits = teacher.logits(inputs)
    found: dict[int, tuple[Tensor | None, Tensor]] = {}
    for block, rows in zip(blocks, _parts(logits, blocks, batch), strict=True):
        for number in block.variants:
            part, own = _narrowed(block, [number], wanted)
            found[number] = (own, rows if part is None else rows[part])
    return [found[number] for number in range(len(variants))]


def _narrowed(block: _Block, kept: list[int], wanted: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which of a block's rows some of these variants want: positions in the block, and instances."""
    if wanted is None:
        return None, None
    here = wanted if block.rows is None else wanted[block.rows]
    part = here[:, kept].any(dim=1).nonzero()[:, 0]
    return part, part if block.rows is None else block.rows[part]


def _parts(x: Tensor, blocks: Sequence[_Block], batch: int) -> tuple[Tensor, ...]:
    sizes = [batch if block.rows is None else len(block.rows) for block in blocks]
    if x.shape[0] != sum(sizes):
        raise RowsMixed
    return x.split(sizes)
