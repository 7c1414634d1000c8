"""Being asked to stop: by Ctrl-C, or by what schedulers send before they take a machine away (SIGTERM, SIGUSR1).

While a stage trains, it stops at its next step, where its state can be saved; elsewhere at once, since finished stages
and whole shards of caches are on disk already.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import ranks
from ..errors import Interrupted, Preempted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopping:
    """Whether this run was asked to stop."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number
        self._patient = False
        self._listening = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals are requests; in the main thread, which alone may listen."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.getsignal(name) for name in _SIGNALS}
        for name in _SIGNALS:
            signal.signal(name, self._ask)
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for name, handler in before.items():
                signal.signal(name, handler)

    @contextmanager
    def at_next_step(self) -> Iterator[None]:
        """Within the block a request waits until somebody looks (`agreed`)."""
        self._patient = True
        try:
            with self.listening():
                yield
        finally:
            self._patient = False

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            # schedulers and launchers both pass their signal on; only a person who repeats it has lost patience
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = number
        if not self._patient:
            raise error(number, "between steps; what is finished is kept")

    def agreed(self, device: torch.device) -> int:
        """The signal that some process was asked by, or 0; every process takes part."""
        return int(ranks.largest(self.asked, device))


def error(number: int, where: str) -> Interrupted:
    """What a run ends with that was asked to stop by this signal."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    return kind(f"stopped {where}")


def resume_with() -> str:
    """How a person goes on with this process's run."""
    started = Path(sys.argv[0])
    if started.name != "mstdistill" and started.parts[-2:] != ("mstdistill", "__main__.py"):
        return "the same call"
    words = shlex.join(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"the same launcher and: -m mstdistill {words}"
    return f"mstdistill {words}"
