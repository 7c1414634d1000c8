"""What a launch should take, from its builds alone: a model that ranks candidates, it predicts no times.

A multiprocessor holds as many blocks as registers, shared memory and warps allow. A block's time is the longest of
these, and a tenth of the others, which never overlap whole:

    memory: the tiles' bytes at the multiprocessor's part of the bandwidth, or at what it has in flight by Little's law:
            resident blocks x bytes that a block loads at once / latency
    issue:  its warps' instructions, four a cycle
    units:  its warps' loads and stores, 128 bytes a cycle and at least a cycle each: narrow ones pay here and in issue

and the launch takes that times the blocks of the busiest multiprocessor, which is where a tile too large for the
problem pays. A loop's body counts once, in bytes, instructions and elements alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
_REGISTERS = 65_536
_RESERVED = 1024  # bytes of shared memory that each block takes by itself
_MOST_BLOCKS = 32
_REST = 0.1
# Cycles from a load to its number, with the memory busy.
_LATENCY = 700


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU: multiprocessors, cycles and bytes a second, warps and shared bytes of each."""

    multiprocessors: int
    clock: float
    bandwidth: float
    warps: int
    shared: int


# Of the data sheets: A100 80 GB, RTX 4090, H100 SXM, B200.
MACHINES = {
    "sm_80": Machine(108, 1.41e9, 2.04e12, 64, 167_936),
    "sm_89": Machine(128, 2.52e9, 1.01e12, 48, 102_400),
    "sm_90": Machine(132, 1.755e9, 3.35e12, 64, 233_472),
    "sm_100": Machine(148, 1.85e9, 8.0e12, 64, 233_472),
}


def machine_of(target: str) -> Machine:
    """Its own, or that of the nearest older capability."""
    number = int(target.removeprefix("sm_"))
    known = [name for name in MACHINES if int(name.removeprefix("sm_")) <= number]
    return MACHINES[known[-1] if known else "sm_80"]


def resident(machine: Machine, facts: Facts) -> int:
    """Blocks that a multiprocessor holds at once."""
    warps = facts["threads"] // 32
    of_warp = -(-facts["registers"] * 32 // 256) * 256
    return max(1, min(_REGISTERS // max(1, of_warp * warps), machine.shared // (facts["shared"] + _RESERVED),
                      machine.warps // warps, _MOST_BLOCKS))  # fmt: skip


def cycles(machine: Machine, facts: Facts, blocks: int) -> float:
    """Of one block on a multiprocessor that has this many to do."""
    warps = facts["threads"] // 32
    together = min(resident(machine, facts), blocks)
    share = machine.bandwidth / machine.multiprocessors / machine.clock
    flying = together * facts["tiles"]["ld"] / _LATENCY
    memory = (facts["tiles"]["ld"] + facts["tiles"]["st"]) / min(share, flying)
    issue = facts["instructions"] * warps / 4
    units = sum(number * warps * max(1.0, 32 * width / 128)
                for kind in ("ld", "st") for width, number in facts[kind].items())  # fmt: skip
    longest = max(memory, issue, units)
    return longest + _REST * (memory + issue + units - longest)


def seconds(machine: Machine, builds: Sequence[Facts], elements: int, total: int) -> float:
    """Of the launches that a choice makes.

    Args:
        builds: facts of each, see `candidates.facts_of`.
        elements: that a block has in hand at once.
        total: of the whole problem.
    """
    blocks = -(-total // elements)
    busiest = -(-blocks // machine.multiprocessors)
    return sum(busiest * cycles(machine, facts, busiest) for facts in builds) / machine.clock


def numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they come from JSON, whose keys are words."""
    return {**found, **{kind: {int(width): count for width, count in found[kind].items()}
                        for kind in ("ld", "st") if kind in found}}  # fmt: skip
