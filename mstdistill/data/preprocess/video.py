"""Frames of video files, by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, first_line


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
    with _opened(path, str(path)) as container:
        return sum(1 for packet in _guarded(str(path), container.demux(container.streams.video[0])) if packet.size)


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


def read_sound(
    source: Path | BytesIO, rate: int | None = None, where: str | None = None
) -> tuple[np.ndarray, int]:  # fmt: skip
    """A media file's first sound track, mono float32 [n] in [-1, 1], and its rate.

    Args:
        rate: to have it at; None: as it is.
        where: how messages call a source that is no file.

    Raises:
        DataError: unreadable, or without sound.
    """
    name = where or str(source)
    blocks = []
    with _opened(source, name) as container:
        import av

        if not container.streams.audio:
            raise DataError(f"{name}: has no sound track")
        stream = container.streams.audio[0]
        rate = rate or int(stream.rate)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in _guarded(name, container.decode(stream)):
            blocks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        blocks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not blocks:
        raise DataError(f"{name}: has no sound")
    return np.concatenate(blocks).astype(np.float32), rate


def _opened(source: Path | BytesIO, name: str) -> Any:
    try:
        import av
    except ImportError:
        raise ConfigError("video, and sound other than wav, need PyAV: pip install 'mstdistill[prepare]'") from None
    try:
        return av.open(str(source) if isinstance(source, Path) else source)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: not a readable video ({first_line(error)}); fetch it again") from None


def _decoded(path: Path) -> Iterator[Any]:
    with _opened(path, str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{path}: has no video track")
        stream = container.streams.video[0]
        stream.thread_count = 1  # the cores are shared out over files already
        yield from _guarded(str(path), container.decode(stream))


def _guarded(name: str, packets: Iterator[Any]) -> Iterator[Any]:
    """Passes on what FFmpeg gives; its errors become one line."""
    import av

    try:
        yield from packets
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: damaged ({first_line(error)}); fetch it again") from None
