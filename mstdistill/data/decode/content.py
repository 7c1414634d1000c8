"""The bytes of a file that a row holds or names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, first_line


def content_of(value: Any, where: str) -> bytes:
    """The bytes of a file that a row holds or names."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is no file but {type(value).__name__}")
    if value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path")
    if not path:
        raise DataError(f"{where} is empty")
    try:
        if "://" in str(path):
            import fsspec

            with fsspec.open(path, "rb") as file:
                return bytes(file.read())
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {path} can't be read ({error.strerror or first_line(error)})") from None
