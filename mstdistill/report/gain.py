"""What distillation gained: the student's accuracy against the student's alone, with intervals where instances are
independent. One run: what another seed would give is in none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Quantile of the normal distribution for 95 % intervals.
_Z = 1.959963984540054
DISTILLED, ALONE = "distilled student", "student alone"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was seen in `count` independent trials."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(one: float, other: float, count: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of `one` - `other`, two shares of `count` independent trials each (Statistics in
    Medicine 17, 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson(one, count), wilson(other, count)
    difference = one - other
    return (
        difference - math.hypot(one - low, other_high - other),
        difference + math.hypot(high - one, other - other_low),
    )


def gain(summary: Mapping[str, Any], split: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """The page's first figures.

    Args:
        summary: content of summary.json.
        counts: by network the split's instances that it was asked; empty: they are no independent ones (pixels).

    Returns:
        For JSON: `accuracy` (of several classes at once `map_macro`) by network,
        `interval` by network where there are any, and of the student's gain `difference` and
        `interval_of_difference`, None where nothing is known.
    """
    entries = [entry for entry in summary["networks"] if split in entry]
    measure = "accuracy" if all("accuracy" in entry[split] for entry in entries) else "map_macro"
    accuracy = {entry["name"]: float(entry[split][measure]) for entry in entries}
    accuracy = {name: accuracy[name] for name in (DISTILLED, ALONE) if name in accuracy} | accuracy  # what is compared
    count = counts.get(DISTILLED)
    distilled, alone = accuracy.get(DISTILLED), accuracy.get(ALONE)
    compared = distilled is not None and alone is not None
    return {
        "split": split,
        "instances": count,
        measure: accuracy,
        "interval": {name: wilson(share, counts[name]) for name, share in accuracy.items() if counts.get(name)},
        "difference": distilled - alone if compared else None,  # type: ignore[operator]
        "interval_of_difference": newcombe(distilled, alone, count) if compared and count else None,  # type: ignore[arg-type]
    }


def sentences(found: Mapping[str, Any], target: str) -> tuple[str, str]:
    """The gain in one sentence, and how its interval was computed.

    Args:
        found: of `gain`.
        target: what the student sees.
    """
    if "map_macro" in found:
        return _several(found, target)
    split, count, accuracy = found["split"], found["instances"], found["accuracy"]
    said = f"Distilled, the {target} student has {100 * accuracy[DISTILLED]:.1f} % {split} accuracy"
    if found["difference"] is not None:
        said += f", alone {100 * accuracy[ALONE]:.1f} %: {100 * found['difference']:+.1f} percentage points"
        if count:
            low, high = found["interval_of_difference"]
            told = "" if low > 0 or high < 0 else "; it may be chance"
            said += f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f}{told})"
    elif count:
        low, high = found["interval"][DISTILLED]
        said += f" (95 % interval {100 * low:.1f} to {100 * high:.1f}); no student alone was trained to compare it with"
    if not count:
        how = "No interval: a picture's pixels are not independent instances."
    elif found["difference"] is not None:
        how = (
            f"Newcombe's interval for the difference of two shares, on {count:,} {split} instances taken as "
            "independent: rather too wide, since both students saw the same ones."
        )
    else:
        how = f"Wilson's interval of a share, on {count:,} {split} instances taken as independent."
    if split != "test":
        how += " The epochs were selected on this very split, which flatters."
    return f"{said}.", f"{how} One seed: what another one would give is not in it."


def _several(found: Mapping[str, Any], target: str) -> tuple[str, str]:
    """As `sentences`, of several classes at once."""
    split, scores = found["split"], found["map_macro"]
    said = f"Distilled, the {target} student has a mean average precision of {scores[DISTILLED]:.3f} on {split}"
    if found["difference"] is not None:
        said += f", alone {scores[ALONE]:.3f}: {found['difference']:+.3f}"
    how = "No interval: average precision is no share of independent instances."
    if split != "test":
        how += " The epochs were selected on this very split, which flatters."
    return f"{said}.", f"{how} One seed: what another one would give is not in it."
