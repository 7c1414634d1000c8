"""Kills ranks of a toy run at random moments with SIGKILL and starts all of them again, as an elastic launcher does;
prints how it went as JSON.

A process of its own: the packages are imported once and each rank is a fork, so that a start costs what its training
costs. `python -m tests.faults.rank_server OUT KILLS SEED [RANKS]`
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # before any work: a forked OpenMP pool would hang

import accelerate  # noqa: E402, F401  what a run imports on its way is here before the first fork
import sklearn.metrics  # noqa: E402, F401
import torch._dynamo  # noqa: E402

import mstdistill.pipeline  # noqa: E402, F401
from mstdistill.errors import LostProcess, MstdistillError  # noqa: E402
from tests import toy  # noqa: E402

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


def start(folder: Path, ranks: int) -> list[int]:
    """Start all ranks; their process numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [_rank(folder, rank, ranks, port) for rank in range(ranks)]


def _rank(folder: Path, rank: int, ranks: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                       "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}  # fmt: skip
        sink = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        toy.run(folder, **SETTINGS, observe=_first_step(folder.parent / "stepped") if rank == 0 else None)
        code = 0
    except LostProcess as error:
        code = error.exit_code
        if not error.told:
            print(f"toy: {error}", flush=True)
    except MstdistillError as error:
        code = error.exit_code
        print(f"toy: {error}", flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _first_step(path: Path) -> Any:
    def observe(stage: str, number: int, parts: Any) -> None:
        if not path.exists():
            path.write_text(stage)

    return observe


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


def strike(folder: Path, ranks: int, chance: random.Random, length: float) -> dict[str, Any] | None:
    """One start and one kill; None: the run finished before it."""
    stepped = folder.parent / "stepped"
    stepped.unlink(missing_ok=True)
    began = time.monotonic()
    pids = start(folder, ranks)
    wait, resumed = chance.uniform(0.05, 0.35) * length, None
    moment = None
    while moment is None or time.monotonic() < moment:
        if resumed is None and stepped.exists():
            resumed = time.monotonic() - began
        # a fifth of the kills strike while the ranks find each other and read the checkpoint
        if moment is None and (resumed is not None or chance.random() < 0.002):
            moment = time.monotonic() + wait * (resumed is not None)
        done = ended(pids, 0.003)
        if done:
            done |= ended([pid for pid in pids if pid not in done], 60.0)
            assert list(done.values()) == [0] * ranks, (folder.parent / "log").read_text()[-3000:]
            return None
    rank = chance.randrange(ranks)
    stage = stage_of(folder)
    os.kill(pids[rank], signal.SIGKILL)
    struck = time.monotonic()
    os.waitpid(pids[rank], 0)
    others = [pid for pid in pids if pid != pids[rank]]
    codes = ended(others, PATIENCE)
    noticed = time.monotonic() - struck
    for pid in others:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return {"rank": rank, "stage": stage, "training": resumed is not None, "resumed": resumed,
            "noticed": noticed if len(codes) == len(others) else None, "codes": sorted(codes.values())}  # fmt: skip


def main() -> None:
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    ranks = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    whole, killed = folder / "whole" / "run", folder / "killed" / "run"
    for run in (whole, killed):
        run.parent.mkdir(parents=True)
    began = time.monotonic()
    codes = ended(start(whole, ranks), 300.0)
    assert list(codes.values()) == [0] * ranks, (whole.parent / "log").read_text()[-3000:]
    length = time.monotonic() - began
    struck: list[dict[str, Any]] = []
    while len(struck) < kills:
        kill = strike(killed, ranks, chance, length)
        if kill is None:
            break
        struck.append(kill)
    else:
        codes = ended(start(killed, ranks), 300.0)
        assert list(codes.values()) == [0] * ranks, (killed.parent / "log").read_text()[-3000:]
    print(json.dumps({"seconds": length, "kills": struck}))


if __name__ == "__main__":
    main()
