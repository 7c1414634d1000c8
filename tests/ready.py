"""Programs started by forks of a process that has imported what they import: a start costs what its work costs.

As `python -m MODULE WORDS`, one process or the ranks of a launch, in an environment of their own. How launchers start
processes is for the tests of launch configs and of nodes.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.context
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class _Process(multiprocessing.context.ForkServerProcess):
    """Takes this process's variables along, as one that is spawned does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.variables = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ |= self.variables
        super().run()


class Context(multiprocessing.context.ForkServerContext):
    """For pools of processes: where `multiprocessing` takes a context."""

    Process = _Process

    def __init__(self) -> None:
        _start_server()


def _program(module: str, words: list[str], env: dict[str, str], out: str, err: str, file_bytes: int) -> None:
    """In the child: as the interpreter would run it, `main` being what the module runs."""
    for path, number in ((out, 1), (err, 2)):
        sink = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(sink, number)
        os.close(sink)
    os.environ.clear()
    os.environ |= env
    os.chdir(ROOT)
    sys.argv = ["mstdistill" if module == "mstdistill.cli" else import_module(module).__file__ or module, *words]
    if file_bytes:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        import_module(module).main()
    finally:
        atexit._run_exitfuncs()


class Program:
    """A running program, its processes and what they say."""

    def __init__(self, module: str, *words: object, ranks: int = 0, env: Mapping[str, str] | None = None,
                 file_bytes: int = 0) -> None:  # fmt: skip
        """Start it.

        Args:
            module: one whose `main` is its program.
            ranks: processes that are told of each other as torchrun does; 0: one that is told nothing.
            env: variables; those of the tests where None.
            file_bytes: no file may grow beyond this; 0: any may.
        """
        _start_server()
        self.folder = Path(tempfile.mkdtemp(prefix="ready-"))
        self.out, self.err = self.folder / "out", self.folder / "err"
        for path in (self.out, self.err):
            path.touch()
        base = dict(os.environ if env is None else env)
        self.processes = [
            _Process(target=_program, args=(module, [str(word) for word in words], base | told, str(self.out),
                                                    str(self.err), file_bytes))
            for told in _told(ranks)
        ]  # fmt: skip
        for process in self.processes:
            process.start()
        weakref.finalize(self, _clean_up, self.processes, self.folder)

    def send_signal(self, number: int) -> None:
        """To every process."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid or 0, number)

    def poll(self) -> int | None:
        """The code it ended with, the worst of its processes; None while it runs."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else max((code for code in codes if code is not None), key=abs)

    def wait(self, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Until its end; beyond this time it is killed.

        Raises:
            subprocess.TimeoutExpired: it was.
        """
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        code = self.poll()
        if code is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(str(self.folder), seconds, self.said(), self.complained())
        return subprocess.CompletedProcess([], code, self.said(), self.complained())

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def complained(self) -> str:
        return self.err.read_text(errors="replace")


def run(module: str, *words: object, ranks: int = 0, env: Mapping[str, str] | None = None, seconds: float = 300.0,
        file_bytes: int = 0) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Start a program and wait for its end."""
    return Program(module, *words, ranks=ranks, env=env, file_bytes=file_bytes).wait(seconds)


def _clean_up(processes: Sequence[BaseProcess], folder: Path) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _start_server() -> None:
    """Once; it imports in the repository's root, told of what is read while importing."""
    forkserver.set_forkserver_preload(["tests.preloaded"])
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        with contextlib.chdir(ROOT):
            forkserver.ensure_running()
    finally:
        os.environ.pop("DS_ACCELERATOR")
        if before is not None:
            os.environ["DS_ACCELERATOR"] = before


def _told(ranks: int) -> list[dict[str, str]]:
    if not ranks:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(ranks)]  # fmt: skip
