"""Publishers' files: where they are, and their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ...errors import DataError


def source_folder(task: str, given: str | None, usage: str = "--source DIR") -> Path:
    """Where a publisher's files are.

    Raises:
        DataError: not said, or not there.
    """
    if not given:
        raise DataError(f"{task} needs its publisher's files: mstdistill prepare {task} {usage}")
    path = Path(given).expanduser()
    if not path.exists():
        raise DataError(f"{task}: there is no {given}; name the folder where you unpacked the publisher's files")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def checksums(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of files by their names below `root`."""
    return {str(path.relative_to(root)): sha256(path) for path in paths}
