"""Kills ranks of a toy run with SIGKILL at steps drawn at random and starts all of them again, as an elastic launcher
does; prints how it went as JSON.

A process of its own: the packages are imported once and each rank is a fork, so that a start costs what its training
costs. `python -m tests.faults.rank_server OUT KILLS SEED [RANKS]`
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.forking import fork_ranks  # isort: skip  before any work
from mstdistill.errors import LostProcess, MstdistillError
from tests import toy
from tests.faults.striking import Blow, draw, observer

STAGES = ("cotrain", "specialise", "distill", "alone")
SETTINGS = {
    "run": {"checkpoint_steps": 3, "timeout_seconds": 20.0},
    "dropout": 0.2,
    "batch_size": 4,
    "quiet": False,
    "cotrain": {"epochs": 4},
    "specialise": {"epochs": 3},
    "distill": {"epochs": 6},
}
# so long the others may take to notice before the launcher ends them
PATIENCE = 30.0


def start(folder: Path, ranks: int, victim: int | None = None, blow: Blow | None = None) -> list[int]:
    """Start all ranks, one of which will be struck; their process numbers."""

    def work(rank: int) -> int:
        sink = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        strikes = blow if rank == victim else None
        try:
            toy.run(folder, **SETTINGS, observe=observer(strikes, folder.parent / "stepped" if rank == 0 else None))
        except MstdistillError as error:
            if not (isinstance(error, LostProcess) and error.told):
                print(f"toy: {error}", flush=True)
            return error.exit_code
        return 0

    return fork_ranks(ranks, work)


def ended(pids: list[int], seconds: float) -> dict[int, int]:
    """Exit codes of those that end by themselves within this time."""
    codes: dict[int, int] = {}
    limit = time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < limit:
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    return codes


def stage_of(folder: Path) -> str:
    return next((name for name in STAGES if not (folder / name / "result.json").exists()), "the end")


def strike(folder: Path, ranks: int, victim: int, blow: Blow) -> dict[str, Any] | None:
    """One start and one kill; None: the run finished before it."""
    stepped = folder.parent / "stepped"
    stepped.unlink(missing_ok=True)
    began, resumed = time.monotonic(), None
    pids = start(folder, ranks, victim, blow)
    codes: dict[int, int] = {}
    while pids[victim] not in codes:
        if resumed is None and stepped.exists():
            resumed = time.monotonic() - began
        codes |= ended([pid for pid in pids if pid not in codes], 0.003)
    struck, stage = time.monotonic(), stage_of(folder)
    codes |= ended([pid for pid in pids if pid not in codes], PATIENCE)
    if set(codes.values()) == {0}:
        return None
    assert codes.pop(pids[victim]) == -signal.SIGKILL, (folder.parent / "log").read_text()[-3000:]
    noticed = time.monotonic() - struck
    hanging = [pid for number, pid in enumerate(pids) if number != victim and pid not in codes]
    for pid in hanging:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"rank": victim, "stage": stage, "training": blow.step > 0 or resumed is not None, "resumed": resumed,
            "noticed": None if hanging else noticed, "codes": sorted(codes.values())}  # fmt: skip


def whole_run(folder: Path, ranks: int) -> float:
    """Run to the end, or from where it was left; how long it took."""
    began = time.monotonic()
    codes = ended(start(folder, ranks), 300.0)
    assert list(codes.values()) == [0] * ranks, (folder.parent / "log").read_text()[-3000:]
    return time.monotonic() - began


def main() -> None:
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    ranks = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    whole, killed = folder / "whole" / "run", folder / "killed" / "run"
    for run in (whole, killed):
        run.parent.mkdir(parents=True)
    length = whole_run(whole, ranks)
    steps = (whole.parent / "stepped").stat().st_size
    struck: list[dict[str, Any]] = []
    while len(struck) < kills:
        kill = strike(killed, ranks, chance.randrange(ranks), draw(chance, steps, kills, 0.3))
        if kill is None:
            break
        struck.append(kill)
    whole_run(killed, ranks)
    print(json.dumps({"seconds": length, "steps": steps, "kills": struck}))


if __name__ == "__main__":
    main()
