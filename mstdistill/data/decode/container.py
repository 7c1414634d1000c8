"""Media files by PyAV (FFmpeg), with one line where they can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, first_line


def opened(source: Path | BytesIO, name: str) -> Any:
    try:
        import av
    except ImportError:
        raise ConfigError("video, and sound other than wav, need PyAV: pip install 'mstdistill[prepare]'") from None
    try:
        return av.open(str(source) if isinstance(source, Path) else source)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: not a readable video ({first_line(error)}); fetch it again") from None


def guarded(name: str, packets: Iterator[Any]) -> Iterator[Any]:
    """Passes on what FFmpeg gives; its errors become one line."""
    import av

    try:
        yield from packets
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: damaged ({first_line(error)}); fetch it again") from None
