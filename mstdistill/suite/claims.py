"""Claims: which worker runs which cell, by files in a folder that all workers share; no server, no lock that dies.

A claim is a file that only one worker can create. Its owner touches it while it works; a claim that nobody has touched
for a while is taken away, which again only one can do.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Claim:
    """A cell that this worker holds; touched in the background until released.

    Args:
        lost: called where another worker took it over: this one was taken for dead.
    """

    def __init__(self, path: Path, token: str, lost: Callable[[], None], beat: float = HEARTBEAT_SECONDS) -> None:
        self.path, self.token, self._lost, self._done = path, token, lost, threading.Event()
        self._thread = threading.Thread(target=self._touch, args=(beat,), daemon=True)
        self._thread.start()

    def _touch(self, beat: float) -> None:
        while not self._done.wait(beat):
            if not self.held():
                self._lost()
                return
            os.utime(self.path)

    def held(self) -> bool:
        """Whether it is still this worker's."""
        try:
            return json.loads(self.path.read_text())["token"] == self.token
        except (OSError, ValueError, KeyError):
            return False

    def release(self) -> None:
        """Give it up."""
        self._done.set()
        self._thread.join()
        if self.held():
            self.path.unlink(missing_ok=True)


def take(
    path: Path, lost: Callable[[], None], stale: float = STALE_SECONDS, beat: float = HEARTBEAT_SECONDS
) -> Claim | None:
    """Claim a cell, if nobody alive holds it.

    Args:
        path: of the claim, in a folder that exists.
        stale: seconds without a touch after which its owner counts as dead.
    """
    for _ in range(2):
        token = uuid.uuid4().hex
        if _create(path, json.dumps({"token": token, "host": socket.gethostname(), "pid": os.getpid()})):
            return Claim(path, token, lost, beat)
        dead = _dead(path, stale)
        if dead is None or not _bury(path, dead, stale):
            return None
    return None


def _create(path: Path, content: str) -> bool:
    """Make a file that isn't there yet; of several that try, one succeeds."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(content)
    return True


def _bury(path: Path, dead: str, stale: float) -> bool:
    """Remove a dead worker's claim. Whoever makes its grave, named after its token, may: so nobody removes the claim of
    a third who was faster."""
    grave = path.with_name(f".{path.name}.{dead}")
    if not _create(grave, ""):
        if _age(grave) > stale:  # whoever made it died over it
            grave.unlink(missing_ok=True)
        return False
    try:
        if json.loads(path.read_text()).get("token", "") == dead:
            path.unlink()
    except (FileNotFoundError, ValueError):
        if dead == "":
            path.unlink(missing_ok=True)
    finally:
        grave.unlink(missing_ok=True)
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the file system's own clock."""
    probe = path.with_name(f".{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _dead(path: Path, stale: float) -> str | None:
    """The token of a claim whose owner is gone: not touched for long, or no such process on this machine."""
    try:
        owner = json.loads(path.read_text())
        token = str(owner["token"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):  # being written, or never written to its end
        return "" if _age(path) > stale else None
    here = owner.get("host") == socket.gethostname()
    return token if _age(path) > stale or (here and not _alive(int(owner.get("pid", 0)))) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
