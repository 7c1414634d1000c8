"""One run a folder: a second one that would write into it is refused while the first lives.

The lock is the operating system's (flock) on an empty file in the folder, held by the first process of a run: it is
gone with that process, however this ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .. import ranks
from ..errors import ConfigError, FolderInUse

LOCK = ".lock"
# File systems that know no locks say so in one of these ways.
_UNKNOWN = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def run_lock(folder: Path, device: torch.device) -> Iterator[None]:
    """Hold a run's folder, which is made if it isn't there; all processes of the run together.

    Args:
        device: on which the processes tell each other.

    Raises:
        FolderInUse: another run uses the folder.
        ConfigError: the folder can't be made or written to.
    """
    held, trouble = None, None
    if ranks.rank() == 0:
        try:
            held = _take(folder)
        except (FolderInUse, ConfigError) as error:
            trouble = error
    if ranks.any_rank(trouble is not None, device):
        raise trouble or FolderInUse(f"{folder}: the first process can't have this folder")
    try:
        yield
    finally:
        if held in _HELD:  # not so in a child that was forked in between
            _HELD.discard(held)
            os.close(held)


def _take(folder: Path) -> int | None:
    """A descriptor that holds the lock; None where the file system has no locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written to ({error.strerror}); choose another --out") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in _UNKNOWN:
            return None
        raise FolderInUse(
            f"{folder}: another run uses this folder; wait for its end, or choose another --out"
        ) from None
    _HELD.add(file)
    return file


# A forked child, a loader's process for example, may outlive its run: it lets go of what it was born with.
_HELD: set[int] = set()


def _let_go() -> None:
    for file in _HELD:
        with suppress(OSError):
            os.close(file)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)
