"""Files that lie packed: in a zip, a tar (packed or not) or behind gzip. They are unpacked once, into the cache."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from ...errors import DataError, first_line
from ...files import saving
from ..place import home

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BLOCK = 1 << 20


def is_packed(path: Path) -> bool:
    """Whether a file's name is one of a packed file."""
    return path.name.lower().endswith((".zip", ".gz", *TARS))


def names_in(path: Path, wanted: Collection[str]) -> list[str]:
    """Which of the files `wanted` are packed in one, wherever in it; twice where it holds two.

    Raises:
        DataError: it can't be read.
    """
    return [name for name, _ in _members(path, wanted)]


def unpacked(path: Path, wanted: Collection[str]) -> Path:
    """A folder of the cache with the files `wanted` that are packed in one; written a megabyte at a time.

    They lie there under their names in `wanted` alone: no path and no link of the archive is followed.

    Raises:
        DataError: truncated or damaged.
        CheckpointError: the cache can't be written, or its disk is full.
    """
    facts = path.stat()
    key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{sorted(wanted)}"
    folder = home() / "unpacked" / hashlib.sha256(key.encode()).hexdigest()[:20]
    if (folder / ".complete").exists():
        return folder
    for name, blocks in _members(path, wanted):
        with saving(folder / name) as temporary, temporary.open("wb") as file:
            file.writelines(blocks)
    with saving(folder / ".complete") as temporary:
        temporary.touch()
    return folder


def _members(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Names and contents of plain files; a content can be read until the next one is asked for."""
    low = path.name.lower()
    with _reading(path):
        if low.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    name = PurePosixPath(entry.filename).name
                    # MacOS packs a shadow of each file
                    if name in wanted and not entry.is_dir() and not entry.filename.startswith("__MACOSX/"):
                        with archive.open(entry) as stream:
                            yield name, _blocks(path, stream)
        elif low.endswith(TARS):
            with tarfile.open(path, "r|*") as stack:
                for member in stack:
                    name = PurePosixPath(member.name).name
                    if name in wanted and member.isreg() and (content := stack.extractfile(member)) is not None:
                        yield name, _blocks(path, content)
        elif path.name[:-3] in wanted:
            with gzip.open(path) as stream:
                yield path.name[:-3], _blocks(path, stream)


def _blocks(path: Path, stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    with _reading(path):
        yield from iter(lambda: stream.read(_BLOCK), b"")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    # a password, a method that isn't known, and damage in each format's own kind
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
        raise DataError(f"{path}: can't be unpacked ({first_line(error)}); fetch it again, or unpack it") from None
