"""Kills a toy run with SIGKILL at random moments and resumes it, many times; prints how it went as JSON.

A process of its own: the packages are imported once and each attempt is a fork, so that an attempt costs what its
training costs. `python -m tests.faults.kill_server OUT KILLS SEED`
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)  # before any work: a forked OpenMP pool would hang

import accelerate  # noqa: E402, F401  what a run imports on its way is here before the first fork
import sklearn.metrics  # noqa: E402, F401
import torch._dynamo  # noqa: E402  the optimisers load it at their first step, for seconds

import mstdistill.pipeline  # noqa: E402, F401
from tests import toy  # noqa: E402

SETTINGS = {"run": {"checkpoint_steps": 3}, "dropout": 0.2, "batch_size": 4, "quiet": False}


def attempt(folder: Path) -> int:
    """Start the run in a child; returns its process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sink = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            toy.run(folder, **SETTINGS)
            code = 0
        finally:
            os._exit(code)
    return child


def main() -> None:
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    folder.mkdir(parents=True)
    whole = folder / "whole" / "run"
    whole.parent.mkdir()
    start = time.monotonic()
    _, status = os.waitpid(attempt(whole), 0)
    assert os.waitstatus_to_exitcode(status) == 0, (whole.parent / "log").read_text()
    length = time.monotonic() - start

    killed = folder / "killed" / "run"
    killed.parent.mkdir()
    done, tries = 0, 0
    while True:
        tries += 1
        child = attempt(killed)
        if done < kills:
            # short enough that the run can't finish before it was killed often, long enough to get on
            deadline = time.monotonic() + chance.uniform(0.02, 0.25) * length
            while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
            try:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                done += os.WIFSIGNALED(status)
                continue
            except (ProcessLookupError, ChildProcessError):
                break  # it had finished
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, (killed.parent / "log").read_text()
        break
    print(json.dumps({"kills": done, "attempts": tries, "seconds_whole": length}))


if __name__ == "__main__":
    main()
