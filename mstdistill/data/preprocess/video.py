"""Frames of video files, by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError


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
    with _opened(path) as container:
        return sum(1 for packet in _guarded(path, container.demux(container.streams.video[0])) if packet.size)


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


def read_sound(path: Path, rate: int) -> np.ndarray:
    """A media file's first sound track, mono float32 [n] in [-1, 1] at `rate`.

    Raises:
        DataError: unreadable, or without sound.
    """
    import av

    blocks = []
    with _opened(path) as container:
        if not container.streams.audio:
            raise DataError(f"{path}: has no sound track")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in _guarded(path, container.decode(container.streams.audio[0])):
            blocks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        blocks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not blocks:
        raise DataError(f"{path}: has no sound")
    return np.concatenate(blocks).astype(np.float32)


def _opened(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise ConfigError("reading video needs PyAV: pip install 'mstdistill[prepare]'") from None
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: not a readable video ({_line(error)}); fetch it again") from None


def _decoded(path: Path) -> Iterator[Any]:
    with _opened(path) as container:
        if not container.streams.video:
            raise DataError(f"{path}: has no video track")
        stream = container.streams.video[0]
        stream.thread_count = 1  # the cores are shared out over files already
        yield from _guarded(path, container.decode(stream))


def _guarded(path: Path, packets: Iterator[Any]) -> Iterator[Any]:
    """Passes on what FFmpeg gives; its errors become one line."""
    import av

    try:
        yield from packets
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: damaged ({_line(error)}); fetch it again") from None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
