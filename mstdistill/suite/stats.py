"""What the cells of a suite show: intervals over seeds, paired tests with a correction for their number, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, standard deviation (n - 1) and half of the 95 % interval of the mean (Student's t)."""

    mean: float
    deviation: float
    half: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """A method against the reference, paired by seed.

    Attributes:
        difference: mean of reference minus method.
        low, high: its 95 % interval.
        p: two-sided paired t-test; nan with fewer than two pairs.
        adjusted: p after Holm's correction over the methods compared in one column.
        wins: in how many pairs the reference is better.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    wins: int
    pairs: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    from scipy import stats

    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Spread(mean, math.nan, math.nan, count)
    deviation = float(np.std(values, ddof=1))
    return Spread(mean, deviation, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)


def paired(reference: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """Of the seeds that both have, before correction."""
    from scipy import stats

    seeds = sorted(reference.keys() & other.keys())
    gaps = np.array([reference[seed] - other[seed] for seed in seeds])
    wins = int((gaps > 0).sum())
    if len(gaps) < 2:
        mean = float(gaps.mean()) if len(gaps) else math.nan
        return Comparison(mean, math.nan, math.nan, math.nan, math.nan, wins, len(gaps))
    found = spread(gaps.tolist())
    if found.deviation > 0:
        p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    else:  # every seed says the same, where a t-test would divide by zero: the sign test
        p = 1.0 if found.mean == 0 else 0.5 ** (len(gaps) - 1)
    return Comparison(found.mean, found.mean - found.half, found.mean + found.half, p, p, wins, len(gaps))


def holm(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Holm's step-down correction over a column's comparisons (family-wise error; no assumption of independence)."""
    known = sorted((name for name, c in comparisons.items() if not math.isnan(c.p)), key=lambda n: comparisons[n].p)
    adjusted, largest = dict(comparisons), 0.0
    for place, name in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * comparisons[name].p))
        found = comparisons[name]
        adjusted[name] = Comparison(found.difference, found.low, found.high, found.p, largest, found.wins, found.pairs)
    return adjusted


def ranks(columns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each method over columns (1 is best, ties share their mean); columns that lack a method are left
    out for it."""
    from scipy import stats

    places: dict[str, list[float]] = {}
    for column in columns:
        names = list(column)
        for name, rank in zip(names, stats.rankdata([-column[name] for name in names]), strict=True):
            places.setdefault(name, []).append(float(rank))
    return {name: float(np.mean(found)) for name, found in places.items()}
