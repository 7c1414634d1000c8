"""How long kernels take: each the longer of its arithmetic and its memory traffic, and the start of each.

(Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009.) Sums over the
kernels, so that small ones count by their bytes and large ones by their FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .engines import Engine, Setting, exchange
from .ledger import Work
from .machines import LINK_EFFICIENCY, Machine
from .profile import StageProfile, Table


def kernel_seconds(works: Sequence[Work], machine: Machine, precision: str, tf32: bool) -> float:
    """Seconds of kernels one after the other; on this CPU as they were timed, where they were."""
    full, half = machine.rate(None, tf32), machine.rate("fp16" if precision == "fp16" else "bf16", tf32)
    reads = machine.reads
    expected = [max(work.flops / (half if work.half else full), work.bytes / reads) for work in works]
    if machine.timer is None:
        busy = sum(expected)
    else:
        busy = sum(machine.timer.seconds(work.call, one) for work, one in zip(works, expected, strict=True))
    return busy + len(works) * machine.per_operator


@lru_cache(maxsize=256)
def _pass_seconds(
    profile: StageProfile, batch: int, machine: Machine, precision: str, tf32: bool
) -> tuple[float, float]:
    """Seconds of a micro-batch's passes, and of the optimiser's step."""
    phases = profile.at(batch).phases
    passes = [*phases["forward"].works, *phases["backward"].works]
    return (
        kernel_seconds(passes, machine, precision, tf32),
        kernel_seconds(phases["step"].works, machine, precision, tf32),
    )


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step: its passes, the optimiser, data on their way to the device, communication."""

    compute: float
    optimiser: float
    feed: float
    exchange: float

    @property
    def total(self) -> float:
        """All, one after the other."""
        return self.compute + self.optimiser + self.feed + self.exchange


def step_time(engine: Engine, profile: StageProfile, setting: Setting, tf32: bool, resident: bool) -> StepTime:
    """Seconds of an optimiser step.

    Args:
        resident: the training data lie on the device.
    """
    machine, sized = setting.machine, profile.at(setting.batch)
    passes, step = _pass_seconds(profile, setting.batch, machine, setting.precision, tf32)
    compute = setting.accumulate * passes
    if engine.offload:
        step = 0.0  # the host's; with the exchange
    elif engine.optimiser:
        step /= setting.world
    rate = machine.reads if machine.is_cpu or resident else machine.host * LINK_EFFICIENCY
    feed = setting.accumulate * sized.moved / rate
    return StepTime(compute, step, feed, exchange(engine, profile, setting).seconds)


def steps_per_epoch(profile: StageProfile, setting: Setting) -> int:
    """Optimiser steps in an epoch."""
    return math.ceil(profile.instances / (setting.batch * setting.accumulate * setting.world))


def build_seconds(table: Table, setting: Setting, tf32: bool) -> float:
    """Seconds in which all processes together fill a table."""
    batches = math.ceil(table.shape[0] / (table.batch * setting.world))
    return batches * kernel_seconds(table.works, setting.machine, setting.precision, tf32)
