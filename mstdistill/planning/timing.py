"""How long this CPU takes for an operator: timed with tensors of its shapes and strides, each kind of call once."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# An operator is repeated until so many seconds have gone, or so often.
_SECONDS, _TIMES = 0.03, 7


@dataclass(frozen=True)
class Spec:
    """A tensor without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """One of this kind: positive numbers, index 0, true."""
        reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        flat = torch.zeros(reach if 0 not in self.shape else 0, dtype=self.dtype)  # an expanded one is larger than it
        if self.dtype.is_floating_point:
            flat.uniform_(0.1, 0.9)
        elif self.dtype == torch.bool:
            flat.fill_(True)
        return flat.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """An operator with what it was given, tensors as specs."""

    func: Any
    arguments: Any
    keywords: Any


def call_of(func: Any, arguments: Any, keywords: dict[str, Any]) -> Call | None:
    """None where something in it can't be told again."""
    try:
        call = Call(func, _frozen(list(arguments)), _frozen(sorted(keywords.items())))
        hash(call)
    except TypeError:
        return None
    return call


def _frozen(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Spec(x.dtype, tuple(int(n) for n in x.shape), tuple(int(n) for n in x.stride()))
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, *map(_frozen, x))
    return x


def _thawed(x: Any) -> Any:
    if isinstance(x, Spec):
        return x.tensor()
    if isinstance(x, tuple) and x and x[0] in ("list", "tuple"):
        return (list if x[0] == "list" else tuple)(map(_thawed, x[1:]))
    return x


class Timer:
    """Seconds of operators on this CPU, kept; beyond the budget as much more than expected as those before it.

    Args:
        budget: seconds that all measuring may take.
        share: of this machine that a process has.
    """

    def __init__(self, budget: float = 30.0, share: float = 1.0) -> None:
        self.left, self.share = budget, share
        self._known: dict[Call, float | None] = {}
        self._found = self._expected = 0.0

    def seconds(self, call: Call | None, expected: float) -> float:
        """Of one call; `expected` is what a roofline says of it."""
        if call is not None and call not in self._known:
            self._known[call] = self._time(call, expected)
        found = self._known.get(call) if call is not None else None
        if found is None:
            return expected * (self._found / self._expected if self._expected else 1.0)
        return found / self.share

    def _time(self, call: Call, expected: float) -> float | None:
        """None where it takes too long, or refuses numbers that are made up."""
        if 2 * expected > self.left or self.left <= 0:
            return None
        begun = time.perf_counter()
        try:
            arguments, keywords = _thawed(call.arguments), dict(_thawed(call.keywords))
            with torch.no_grad():
                found = _median(lambda: call.func(*arguments, **keywords))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None
        self.left -= time.perf_counter() - begun
        if expected:
            self._found, self._expected = self._found + found, self._expected + expected * self.share
        return found


def _median(work: Any) -> float:
    """Seconds of a call, after one that is cold: of a long one the next, of others of several."""
    started = time.perf_counter()
    work()
    least = 1 if time.perf_counter() - started > _SECONDS * _TIMES else 3
    taken: list[float] = []
    while len(taken) < least or (sum(taken) < _SECONDS and len(taken) < _TIMES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
