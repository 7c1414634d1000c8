"""Kills a toy run with SIGKILL at steps drawn at random and resumes it, many times; prints how it went as JSON.

A process of its own: the packages are imported once and each attempt is a fork, so that an attempt costs what its
training costs. `python -m tests.faults.kill_server OUT KILLS SEED`
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from tests.forking import fork  # isort: skip  before any work
from tests import toy
from tests.faults.striking import Blow, draw, observer

SETTINGS = {"run": {"checkpoint_steps": 3}, "dropout": 0.2, "batch_size": 4, "quiet": False,
            "data": {"labelled": 0.4, "labelled_share": 0.3}, "lacking": True, "hiding": 0.3,
            "augment": {"modalities": {"m1": [{"noise": 0.3}], "m2": [{"shift": 0.4}]}, "mixup": 0.4}}  # fmt: skip


def attempt(folder: Path, blow: Blow | None = None) -> int:
    """Start the run in a child and wait for its end; its exit code."""

    def work() -> int:
        sink = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        toy.run(folder, **SETTINGS, observe=observer(blow, folder.parent / "stepped"))
        return 0

    code = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
    assert code in (0, -signal.SIGKILL), (folder.parent / "log").read_text()[-3000:]
    return code


def main() -> None:
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    whole, killed = folder / "whole" / "run", folder / "killed" / "run"
    for run in (whole, killed):
        run.parent.mkdir(parents=True)
    assert attempt(whole) == 0
    steps = (whole.parent / "stepped").stat().st_size
    done = 0
    while done < kills and attempt(killed, draw(chance, steps, kills, 0.1)) != 0:
        done += 1
    assert attempt(killed) == 0
    print(json.dumps({"kills": done, "steps": steps}))


if __name__ == "__main__":
    main()
