"""Two hosts on this machine: network namespaces with a cable between them, in which launchers run as on two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PORT = 29400


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """Why there can be no namespaces here; None: there can."""
    name = f"mst-{uuid.uuid4().hex[:6]}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except FileNotFoundError:
        return "no `ip` command (package iproute2)"
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    return None


@dataclass
class Node:
    """A host of its own: name of its namespace, its address, and its launcher's process where one runs."""

    number: int
    name: str
    address: str
    link: str
    log: Path
    launcher: subprocess.Popen[bytes] | None = None

    def start(self, words: Sequence[str], first: str, **variables: str) -> None:
        """Start the elastic launcher here; `first` is the address where nodes meet."""
        env = {
            **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GPUS": "1", "NODES": "2:2",
            "ENDPOINT": f"{first}:{PORT}", "PET_LOCAL_ADDR": self.address,
            "JOB_COMPLETION_INDEX": str(self.number), "GLOO_SOCKET_IFNAME": self.link,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables,
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.launcher = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "scripts/train_torchrun.sh", *words],
                cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """The launcher and its trainers."""
        if self.launcher is None or self.launcher.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.launcher.pid)
            return [own, *own.children(recursive=True)]
        return []

    def trainers(self) -> list[psutil.Process]:
        """What the launcher started."""
        return self.processes()[1:]

    def signal(self, number: int) -> None:
        """To every process of the node."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def lose(self) -> None:
        """As a node whose power fails: everything is gone at once, and nobody says goodbye."""
        self.cable("down")
        self.signal(signal.SIGKILL)
        if self.launcher is not None:
            self.launcher.wait()
        self.launcher = None
        self.cable("up")

    def cable(self, state: str) -> None:
        """Pull the cable ("down") or plug it in again ("up")."""
        _ip("-n", self.name, "link", "set", self.link, state)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Pair:
    """Two nodes and what they run."""

    nodes: list[Node]
    words: list[str] = field(default_factory=list)

    def start(self, *which: int) -> None:
        for number in which or (0, 1):
            self.nodes[number].start(self.words, self.nodes[0].address)

    def until(self, true: Callable[[], Any], seconds: float = 240.0) -> float:
        """Wait; how long it took."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, "nothing came: " + "\n".join(
                n.said()[-2500:] for n in self.nodes
            )
            time.sleep(0.05)
        return time.monotonic() - began

    def finish(self, seconds: float = 300.0) -> None:
        """Wait until both launchers end well."""
        self.until(lambda: all(n.launcher is None or n.launcher.poll() is not None for n in self.nodes), seconds)
        codes = [n.launcher.returncode for n in self.nodes if n.launcher is not None]
        assert codes == [0, 0], f"{codes}: " + "\n".join(n.said()[-2500:] for n in self.nodes)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Pair]:
    """Two namespaces joined by a cable; all that runs in them ends with the block.

    Args:
        folder: for the launchers' logs.
    """
    mark = uuid.uuid4().hex[:6]
    names = [f"mst-{mark}-{number}" for number in range(2)]
    links = [f"mst{mark}{number}" for number in range(2)]
    nodes = [Node(n, names[n], f"10.231.7.{n + 1}", links[n], folder / f"node{n}.log") for n in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        for node in nodes:
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.link)
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "link", "set", node.link, "up")
        yield Pair(nodes)
    finally:
        for node in nodes:
            node.signal(signal.SIGKILL)
            if node.launcher is not None:
                node.launcher.wait()
        for name in names:
            with suppress(subprocess.CalledProcessError, FileNotFoundError):
                _ip("netns", "del", name)
