"""The search on a device: every group's standing choice first, then the best of each by the model, as time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..tiles import Table, choose, trying
from .candidates import Candidate, standing

# A choice replaces the standing one where it is this much faster: less is a machine's mood.
GAIN = 1.03
# Sizes that a kernel's choices are told apart by, in order.
_SIZES = {"route": [2**n for n in range(1, 11)], "kd_rows": [2**n for n in range(1, 13)],
          "bernoulli": [2**n for n in range(1, 11)],
          "attend": [*range(16, 129, 16), 192, 256], "attend_backward": [*range(16, 129, 16), 192, 256]}  # fmt: skip

# (seconds, what was computed)
Measure = Callable[[Candidate], tuple[float, list[Tensor]]]


@dataclass
class Group:
    """Candidates for one size of one kernel, the standing choice first."""

    candidates: list[Candidate]
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Candidate | None:
        """What should be chosen from now on; None: the standing choice is as good, or nothing else was timed."""
        first = self.candidates[0]
        timed = [one for one in self.candidates if one.name in self.seconds]
        if first.name not in self.seconds:
            return None
        best = min(timed, key=lambda one: self.seconds[one.name])
        return best if self.seconds[first.name] > GAIN * self.seconds[best.name] else None


def grouped(ranked: Sequence[Candidate], where: tuple[str, ...]) -> dict[str, Group]:
    """By what they compete in: the standing choice, then the others in the order given."""
    groups: dict[str, Group] = {}
    for one in ranked:
        if one.group not in groups:
            own = standing(one, where)
            groups[one.group] = Group([Candidate(one.key, one.size, own, one.elements)])
        if one.name != groups[one.group].candidates[0].name:
            groups[one.group].candidates.append(one)
    return groups


def search(groups: Mapping[str, Group], measure: Measure, budget: float, say: Callable[[str], None]) -> list[str]:
    """Time them, the first of every group before the second of any; what time didn't allow.

    A candidate that fails, or computes other numbers than the standing choice, is noted as wrong and never chosen.
    """
    started, left = time.monotonic(), []
    computed: dict[str, list[Tensor]] = {}
    for place in range(max((len(group.candidates) for group in groups.values()), default=0)):
        for name, group in groups.items():
            if place >= len(group.candidates) or (place and name not in computed):
                continue
            one = group.candidates[place]
            if place and time.monotonic() - started > budget:
                left.append(one.name)
                continue
            try:
                with trying(one.key, dict(one.choice)):
                    seconds, found = measure(one)
                computed.setdefault(name, found)
                if not _same(computed[name], found):
                    raise ValueError("other numbers than the standing choice")
            except Exception as error:  # of a compiler, a driver
                group.wrong[one.name] = (str(error).splitlines() or [type(error).__name__])[0][:200]
                say(f"{one.name}: {group.wrong[one.name]}")
                continue
            group.seconds[one.name] = seconds
            say(f"{one.name}: {1e6 * seconds:,.1f} us")
    return left


def _same(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """To rounding, of the inputs' type."""
    for one, other in zip(wanted, found, strict=True):
        a, b = one.double(), other.double()
        coarse = one.element_size() == 2 or other.element_size() == 2
        if not float((a - b).norm()) <= (1e-2 if coarse else 1e-3) * float(a.norm()) + 1e-12:
            return False
    return True


def table_of(groups: Mapping[str, Group], device: str, where: tuple[str, ...]) -> Table:
    """A launch table of what was found better; sizes that weren't tried keep what they have."""
    found: dict[str, dict[int, Mapping[str, int]]] = {}
    for group in groups.values():
        if group.best is not None:
            found.setdefault(group.best.key, {})[group.best.size] = group.best.choice
    return {device: {key: _entries(key, better, where) for key, better in sorted(found.items())}} if found else {}


def _entries(key: str, better: Mapping[int, Mapping[str, int]], where: tuple[str, ...]) -> list[dict[str, int]]:
    kernel, _, kind = key.partition(" ")
    if kernel not in _SIZES:
        return [dict(choice) for choice in better.values()]
    out: list[dict[str, int]] = []
    for size in _SIZES[kernel]:
        choice = better.get(size) or choose(kernel, size, kind, where)
        entry: dict[str, Any] = {name: value for name, value in choice.items() if name != "to"}
        if out and {name: value for name, value in out[-1].items() if name != "to"} == entry:
            out[-1]["to"] = size
        else:
            out.append({"to": size, **entry})
    return out
