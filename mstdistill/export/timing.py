"""How long the student and its artefacts take for a batch on this CPU, in turns, so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from .checking import Run
from .rows import Rows

# Turns, calls in a turn at most, seconds that a turn of one of them may take, and all its turns; slow ones get fewer.
_TURNS, _CALLS, _SECONDS, _LONG = 9, 30, 0.05, 3.0
BATCHES = (1, 32)
# A batch whose call would take longer isn't timed, nor one that weighs more.
_SLOWEST, _HEAVIEST = 4.0, 256e6


@torch.no_grad()
def latencies(student: Run, runs: Mapping[str, Run], rows: Rows, raw: Run) -> dict[str, dict[str, float | None]]:
    """Median seconds of a call by name ("student" for eager PyTorch) and batch; None: too slow to be timed here.

    Args:
        raw: makes what artefacts take of a view; no part of the time.
    """
    everyone = {"student": student, **runs}
    found: dict[str, dict[str, float | None]] = {name: {str(size): None for size in BATCHES} for name in everyone}
    row = dict.fromkeys(everyone, 0.0)  # seconds of one
    for size in BATCHES:
        quick = {name: run for name, run in everyone.items() if row[name] * size <= _SLOWEST}
        view = _batch(rows, size)
        if view is None or not quick:
            continue
        given = {name: view if name == "student" else raw(view) for name in quick}
        first = {name: min(_timed(run, given[name], 2)) for name, run in quick.items()}
        row |= {name: seconds / size for name, seconds in first.items()}
        calls: dict[str, list[float]] = {name: [] for name in quick}
        for turn in range(_TURNS):
            for name, run in quick.items():
                count = max(1, min(_CALLS, int(_SECONDS / first[name])))
                if turn and turn * (count + 1) * first[name] > _LONG:
                    continue
                # the first call of a turn finds the caches full of another's data
                calls[name] += _timed(run, given[name], count + 1)[1:]
        for name, seconds in calls.items():
            found[name][str(size)] = statistics.median(seconds)
    return found


def _batch(rows: Rows, size: int) -> Tensor | None:
    """A batch of the rows, repeated where they are fewer; None: too heavy."""
    one, _ = rows.take(0, 1)
    if one.numel() * one.element_size() * size > _HEAVIEST:
        return None
    view, _ = rows.take(0, min(size, len(rows)))
    return view.repeat(-(-size // len(view)), *(1,) * (view.dim() - 1))[:size].contiguous()


def _timed(run: Run, view: Tensor, count: int) -> list[float]:
    found = []
    for _ in range(count):
        started = time.perf_counter()
        run(view)
        found.append(time.perf_counter() - started)
    return found
