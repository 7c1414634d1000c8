"""Frames of video files, by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from .container import guarded, opened


def evenly_spaced(count: int, length: int, begin: int = 0) -> list[int]:
    """`count` positions in `length` frames from `begin` on: i * length // count + length // (2 * count) (data protocol,
    RAVDESS)."""
    return [begin + i * length // count + length // (2 * count) for i in range(count)]


def read_frames(path: Path, wanted: Sequence[int] | None = None) -> list[np.ndarray]:
    """RGB frames [H, W, 3] uint8 of a video.

    Args:
        wanted: ascending positions; None: all. Positions beyond the video's end are left out.

    Raises:
        DataError: missing, truncated or no video.
    """
    last = max(wanted) if wanted else None
    chosen = None if wanted is None else set(wanted)
    frames = []
    for number, frame in enumerate(_decoded(path)):
        if chosen is None or number in chosen:
            frames.append(frame.to_ndarray(format="rgb24"))
        if number == last:
            break
    if not frames:
        raise DataError(f"{path}: no frame of it can be decoded; fetch it again")
    return frames


def count_frames(path: Path) -> int:
    """How many frames a video has, from its packets: nothing is decoded.

    Raises:
        DataError: missing, truncated or no video.
    """
    with opened(path, str(path)) as container:
        return sum(1 for packet in guarded(str(path), container.demux(container.streams.video[0])) if packet.size)


def read_at(path: Path, seconds: Sequence[float]) -> list[np.ndarray]:
    """RGB frames [H, W, 3] uint8 on show at these ascending times; after the end, the last one.

    Raises:
        DataError: missing, truncated or no video.
    """
    frames: list[np.ndarray] = []
    last: Any = None
    for frame in _decoded(path):
        while len(frames) < len(seconds) and frame.time is not None and frame.time > seconds[len(frames)]:
            frames.append((last or frame).to_ndarray(format="rgb24"))
        last = frame
        if len(frames) == len(seconds):
            break
    if last is None:
        raise DataError(f"{path}: no frame of it can be decoded; fetch it again")
    rest = len(seconds) - len(frames)
    return frames + ([last.to_ndarray(format="rgb24")] * rest if rest else [])


def _decoded(path: Path) -> Iterator[Any]:
    with opened(path, str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{path}: has no video track")
        stream = container.streams.video[0]
        stream.thread_count = 1  # the cores are shared out over files already
        yield from guarded(str(path), container.decode(stream))
