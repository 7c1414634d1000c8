"""Orders of an epoch: labelled instances have a share of every optimiser step, or classes come equally often.

Both kinds stand in shuffled rows of their own that begin anew when they end, so that an epoch has as many steps as one
over all instances, whatever the share. Where an epoch begins in these rows follows from its number alone: nothing is
kept from one epoch to the next, and a run goes on in the middle of any.
"""

from __future__ import annotations

import numpy as np


def mixed_order(
    labelled: np.ndarray, share: float, step: int, seed: int, epoch: int, classes: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """[N] positions; in every `step` of them a share, at least one, is labelled, spread evenly over the step.

    Args:
        labelled: [N] bool.
        share: above 0, at most 1.
        classes: [N], -1 for none; the labelled ones' classes come equally often. None: as they are.
    """
    sizes = [min(step, len(labelled) - start) for start in range(0, len(labelled), step)]
    both = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    wanted = [size if not len(both[1]) else min(size, max(1, round(share * size))) for size in sizes]
    counts = sum(wanted), sum(sizes) - sum(wanted)
    drawn = [_stretch(both[kind], counts[kind], epoch, (seed, kind)) for kind in (0, 1)]
    if classes is not None:
        known = np.where(labelled, classes, -1)
        drawn[0] = balanced_draw(known, counts[0], seed, epoch * counts[0])
    out, at = np.empty(len(labelled), dtype=np.int64), [0, 0]
    start = 0
    for size, some in zip(sizes, wanted, strict=True):
        # evenly, so that every process and micro-batch of the step has its part
        places = np.zeros(size, dtype=bool)
        places[(np.arange(some) * size) // some] = True
        block = out[start : start + size]
        for kind, mask in enumerate((places, ~places)):
            count = int(mask.sum())
            block[mask] = drawn[kind][at[kind] : at[kind] + count]
            at[kind] += count
        start += size
    return out


def balanced_draw(classes: np.ndarray, count: int, seed: int, start: int) -> np.ndarray:
    """[count] positions, from place `start` of an endless row in which classes come equally often: rounds in which each
    comes once, in an order of its own, and of each class its instances' shuffles one after the other.

    Args:
        classes: [N] each instance's, -1 for none, which doesn't come.
    """
    rows = [np.flatnonzero(classes == number) for number in np.unique(classes[classes >= 0])]
    first, last = start // len(rows), -(-(start + count) // len(rows))
    draws = [_endless(own, first, last - first, (seed, 2, kind)) for kind, own in enumerate(rows)]
    rounds = [np.random.default_rng([seed, number, 0x0BA1]).permutation(len(rows)) for number in range(first, last)]
    order = [draws[kind][number] for number, kinds in enumerate(rounds) for kind in kinds]
    return np.asarray(order, dtype=np.int64)[start - first * len(rows) :][:count]


def _stretch(rows: np.ndarray, count: int, epoch: int, seed: tuple[int, int]) -> np.ndarray:
    """The epoch's `count` of an endless row: shuffles of `rows`, one after the other."""
    if not count:
        return rows[:0]
    return _endless(rows, epoch * count, count, seed)


def _endless(rows: np.ndarray, start: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """`count` from place `start` of the endless row."""
    first, skipped = divmod(start, len(rows))
    parts, have = [], -skipped
    while have < count:
        parts.append(np.random.default_rng([*seed, first, 0x0D1F]).permutation(rows))
        first, have = first + 1, have + len(rows)
    return np.concatenate(parts)[skipped : skipped + count]
