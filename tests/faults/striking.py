"""A blow: SIGKILL that a process gives itself, so many steps after its start and a moment later.

Steps, not seconds, place it: the blows of a run fall where they were drawn on a busy machine too.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Blow:
    """`step`: after so many of this start, 0 at the start; `delay`: and so many seconds, in the midst of anything."""

    step: int
    delay: float

    def arm(self) -> None:
        timer = threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()


def draw(chance: random.Random, steps: int, blows: int, starting: float) -> Blow:
    """One of `blows` blows to a run of this many steps: the first three always fall within it, all of them reach far.

    A fifth strikes before the first step, within `starting` seconds of the start.
    """
    if chance.random() < 0.2:
        return Blow(0, chance.uniform(0.0, starting))
    return Blow(chance.randint(1, max(1, int(1.6 * steps / blows))), chance.uniform(0.0, 0.02))


def observer(blow: Blow | None, count: Path | None = None) -> Callable[[str, int, Any], None]:
    """Strikes when its step has come; `count`: a file that grows by a byte a step."""
    seen = 0

    def observe(stage: str, number: int, parts: Any) -> None:
        nonlocal seen
        seen += 1
        if count is not None:
            with count.open("ab") as file:
                file.write(b".")
        if blow is not None and seen == blow.step:
            blow.arm()

    if blow is not None and blow.step == 0:
        blow.arm()
    return observe
