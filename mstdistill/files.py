"""Writing so that nothing is lost: to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it doesn't.

    Raises:
        CheckpointError: the disk is full or can't be written; what was there before is untouched.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_cannot_write(path, error)) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """As `saving`, for a folder: complete or not there at all; an old folder of that name is replaced."""
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        old = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_cannot_write(folder, error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Within the block no other process is in one for the same path.

    Args:
        waiting: called where another process is, before waiting for it.
    """
    lock = path.parent / f".{path.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with saving(path) as temporary:
        temporary.write_text(text)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; tensors are copied to the CPU and made contiguous."""
    from safetensors.torch import save_file

    with saving(path) as temporary:
        save_file(
            {name: x.detach().to("cpu").contiguous().clone() for name, x in tensors.items()},
            temporary,
            dict(metadata or {}),
        )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: BaseException) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        word in str(error) for word in ("No space", "File too large", "os error 28", "os error 27")
    )
    if full:
        return (
            f"disk full while saving {path}: nothing was lost, earlier files are whole; free some space and run again"
        )
    return f"can't write {path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
