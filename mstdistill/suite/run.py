"""Running a suite: every worker takes a cell that nobody has done or holds and runs it, until none is left.

Workers need nothing but the shared folder: one process, several here, or an array on many machines are the same thing.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..engine.progress import Screen
from ..errors import FolderInUse, Interrupted, MstdistillError, Preempted
from ..files import write_text
from .claims import take
from .plan import Cell, Grid, code_version
from .sharing import Busy, seconds_of, shareable, sharing

POLL_SECONDS = 1.0


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Run one cell to its end, or go on with it; returns its record.

    Raises:
        MstdistillError: what the method or the task refuses.
        Busy: another worker is at a stage that the cell shares, or at the cell: one taken for dead that lives.
    """
    from ..pipeline import train

    run = folder / "cells" / cell.key / "run"
    keys = shareable(cell.recipe, code_version(), cell.data)
    started = time.monotonic()
    recipe = cell.recipe.model_copy(update={"run": cell.recipe.run.model_copy(update={"trackers": [], "page": False})})
    with sharing(folder, run, keys) as shared:
        try:
            result = train(recipe, run, Screen(quiet=True), finished=shared.finished)
        except FolderInUse as error:
            raise Busy(str(error)) from None
    networks = {entry["name"]: entry for entry in result.summary["networks"]}
    return {
        "status": "done",
        "seconds": round(time.monotonic() - started, 2),
        "borrowed": shared.borrowed,
        "seconds_borrowed": round(seconds_of(run, shared.borrowed), 2),
        "networks": networks,
        "routing_share": result.summary["routing_share"],
    }


class Worker:
    """One worker's loop over a grid.

    Args:
        run: runs a cell; another one in tests.
        finished: called after each cell that this worker has finished.
    """

    def __init__(
        self, grid: Grid, folder: Path, run: Callable[[Cell, Path], dict[str, Any]] = run_cell,
        say: Callable[[str], None] = print, stale: float = 60.0, finished: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.grid, self.folder, self.run, self.say, self.stale = grid, folder, run, say, stale
        self.finished = finished
        self._said = ""

    def work(self) -> None:
        """Run cells until every cell of the grid is done or given up, by this worker or by others.

        Raises:
            Interrupted: this worker was asked to stop; its cell's state is saved and goes on in any worker.
        """
        while True:
            missing = [cell for cell in self.grid.cells if not self._record(cell).exists()]
            if not missing:
                return
            if not any(self._try(cell) for cell in missing):
                time.sleep(POLL_SECONDS)  # others hold them; should one die, its cell is taken up here

    def _record(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.key / "cell.json"

    def _try(self, cell: Cell) -> bool:
        """Claim and run a cell; whether this worker did. Not where another one holds it, or a stage that it shares."""
        home = self.folder / "cells" / cell.key
        home.mkdir(parents=True, exist_ok=True)
        claim = take(home / "claim", lambda: os._exit(3), self.stale)
        if claim is None:
            return False
        try:
            if self._record(cell).exists():
                return False
            try:
                record = self._attempt(cell, home)
            except Busy:
                return False
            if record is not None and claim.held():
                write_text(self._record(cell), json.dumps({**self._about(cell), **record}, indent=1))
                self.finished()
        finally:
            claim.release()
        return True

    def _attempt(self, cell: Cell, home: Path) -> dict[str, Any] | None:
        """The record of a cell that is finished or given up; None: to be tried again."""
        attempts = home / "attempts.json"
        failed = json.loads(attempts.read_text()) if attempts.exists() else []
        if cell.title != self._said:  # a cell that waits for another's stage comes up again and again
            self.say(cell.title)
        self._said = cell.title
        try:
            return self.run(cell, self.folder)
        except Preempted as error:  # an end, but not the suite's
            raise Interrupted(str(error)) from None
        except (Busy, Interrupted):
            raise
        except MstdistillError as error:
            return {"status": "refused", "reason": str(error).split("  [run:")[0]}
        except Exception as error:
            gc.collect()
            failed.append({"error": f"{type(error).__name__}: {error}", "host": socket.gethostname()})
            write_text(home / f"attempt-{len(failed)}.log", traceback.format_exc())
            write_text(attempts, json.dumps(failed, indent=1))
            self.say(f"{cell.title}: attempt {len(failed)} failed: {failed[-1]['error'].splitlines()[0]}")
            if len(failed) <= self.grid.suite.retries:
                return None
            return {"status": "failed", "reason": failed[-1]["error"].splitlines()[0], "attempts": len(failed),
                    "log": str(home / f"attempt-{len(failed)}.log")}  # fmt: skip

    @staticmethod
    def _about(cell: Cell) -> dict[str, Any]:
        return {"task": cell.task, "target": cell.target, "method": cell.method, "seed": cell.seed, "key": cell.key,
                "code": code_version()}  # fmt: skip


def run_suite(
    grid: Grid, folder: Path, workers: int, command: Sequence[str], screen: Screen,
    finished: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Run what is missing, in this process or in several; a worker that dies is started again.

    Args:
        command: that starts a worker of this suite.
        finished: called after each cell that this process has finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = [cell for cell in grid.cells if (folder / "cells" / cell.key / "cell.json").exists()]
    if len(done) == len({cell.key for cell in grid.cells}):
        return
    if workers == 1:
        with screen.task(grid.suite.name, len(grid.cells), len(done)) as bar:
            Worker(grid, folder, say=_marking(bar, grid, folder, screen), finished=finished).work()
            _advance(bar, grid, folder)
        return
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}

    def start(number: int) -> subprocess.Popen[bytes]:
        (folder / "workers").mkdir(exist_ok=True)
        with (folder / "workers" / f"{socket.gethostname()}-{number}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "mstdistill", *command], stdout=log, stderr=log,
                                    env=environment)  # fmt: skip

    running = [start(number) for number in range(workers)]
    deaths = 0
    before = signal.signal(signal.SIGTERM, _stop)  # the workers must not outlive it
    try:
        with screen.task(grid.suite.name, len(grid.cells), len(done)) as bar:
            while any(process.poll() is None for process in running):
                time.sleep(POLL_SECONDS)
                _advance(bar, grid, folder)
                for number, process in enumerate(running):
                    if process.poll() not in (None, 0) and deaths < 10 * workers:
                        deaths += 1
                        screen.say(f"worker {number} ended with code {process.returncode}; started again")
                        running[number] = start(number)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


def _stop(number: int, frame: Any) -> None:
    raise Interrupted("stopped; the same command goes on")


def _marking(bar: Any, grid: Grid, folder: Path, screen: Screen) -> Callable[[str], None]:
    def say(text: str) -> None:
        _advance(bar, grid, folder)
        bar.remark(text)
        if "failed" in text:
            screen.say(text)

    return say


def _advance(bar: Any, grid: Grid, folder: Path) -> None:
    finished = sum((folder / "cells" / cell.key / "cell.json").exists() for cell in grid.cells)
    while bar.done < finished:
        bar.advance()
