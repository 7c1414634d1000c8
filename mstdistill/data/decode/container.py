"""Media files by PyAV (FFmpeg), with one line where they can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, first_line


def opened(source: Path | BytesIO, name: str) -> Any:
    """A media file's container.

    Raises:
        ConfigError: PyAV isn't installed.
        DataError: missing, or nothing that FFmpeg knows.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(
            f"{name}: video, and sound other than plain wav, need PyAV: pip install 'mstdistill[prepare]'"
        ) from None
    try:
        # a title in another encoding is no reason not to play
        return av.open(str(source) if isinstance(source, Path) else source, metadata_errors="replace")
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{name}: not a readable video or sound ({first_line(error)}); fetch it again") from None


def guarded(name: str, packets: Iterator[Any]) -> Iterator[Any]:
    """Passes on what FFmpeg gives; its errors become one line."""
    try:
        yield from packets
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{name}: damaged ({first_line(error)}); fetch it again") from None
