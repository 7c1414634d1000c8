"""The bytes of a file that a row holds or names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, first_line


def content_of(value: Any, where: str) -> bytes:
    """The bytes of a file: bytes, a path (local, or of any protocol that fsspec knows), or a row's mapping of both.

    Raises:
        DataError: none there, empty, or it can't be read.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        found = bytes(value)
    elif isinstance(value, (str, os.PathLike)):
        found = _read(value, where)
    elif not isinstance(value, Mapping):
        raise DataError(f"{where} is no file but {type(value).__name__}; give its bytes or its path")
    else:
        held, path = value.get("bytes"), value.get("path")
        if held is not None and not isinstance(held, (bytes, bytearray, memoryview)):
            raise DataError(f"{where} holds {type(held).__name__} where the bytes of a file are wanted")
        if not held and not path:
            raise DataError(f"{where} is empty; leave this instance out")
        found = bytes(held) if held else _read(path, where)
    if not found:
        raise DataError(f"{called(value, where)} is an empty file; fetch it again")
    return found


def called(value: Any, where: str) -> str:
    """How messages call a row's file: by its place, and its name where the row has one."""
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, (str, os.PathLike)) else None
    return f"{where} ({path})" if path else where


def _read(path: Any, where: str) -> bytes:
    try:
        if "://" in str(path):
            import fsspec

            with fsspec.open(path, "rb") as file:
                return bytes(file.read())
        return Path(path).read_bytes()
    except MemoryError:
        raise
    except Exception as error:  # each protocol has its own
        why = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{where}: {path} can't be read ({why}); mend the path, or fetch the file again") from None
