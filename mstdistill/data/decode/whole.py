"""Whether a sound's file is whole: readers play what is there of a truncated one, without a word."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from ...errors import DataError

WAV = (b"RIFF", b"RIFX", b"RF64")
# What a wav's header says where it was written to a pipe, or where the size lies elsewhere (RF64).
_UNKNOWN = (0, 0xFFFFFFFF)
# Containers whose header counts a track's samples to the last; the others count packets, with padding at both ends.
_EXACT = {"flac", "wav", "aiff", "au", "caf"}
_PADDED = {"mov", "matroska", "mp3"}
# As much of a file as its first headers take.
_HEAD = 1 << 16


def cut_wav(source: Path | BytesIO) -> bool:
    """Whether a wav file ends before its samples do, or has none."""
    with _reading(source) as file:
        head = file.read(12)
        order: Literal["big", "little"] = "big" if head[:4] == b"RIFX" else "little"
        size = file.seek(0, 2)
        at = 12
        while at + 8 <= size and head[:4] in WAV:
            file.seek(at)
            chunk = file.read(8)
            length = int.from_bytes(chunk[4:], order)
            at += 8
            if chunk[:4] == b"data":
                return at == size or (length not in _UNKNOWN and at + length > size)
            at += length + length % 2
    return True


def check_whole(container: Any, source: Path | BytesIO, length: int, rate: int, name: str) -> None:
    """Compare what FFmpeg decoded of a track with what its container's header promises.

    Args:
        length: samples, at `rate`.

    Raises:
        DataError: the file is truncated.
    """
    formats = set(container.format.name.split(","))
    stream = container.streams.audio[0]
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if "matroska" in formats and len(container.streams) == 1:
        seconds = (container.duration or 0) / 1e6
    if "caf" in formats:
        seconds = max(seconds, stream.frames / stream.rate)
    if formats & _EXACT:
        slack = 2 / stream.rate
    elif formats & _PADDED and not ("mp3" in formats and not _counts_frames(source)):
        slack = max(4096 / stream.rate, seconds / 50)
    else:
        seconds = slack = 0.0
    if length / rate < seconds - slack or ("ogg" in formats and _cut_page(source)):
        promised = f" of {seconds:.3f}" if seconds else ""
        raise DataError(f"{name}: truncated, {length / rate:.3f}{promised} seconds are there; fetch it again")


def _counts_frames(source: Path | BytesIO) -> bool:
    """Whether an MP3 says how long it is; elsewhere FFmpeg guesses from the first frame."""
    with _reading(source) as file:
        head = file.read(10)
        tags = 0
        if head[:3] == b"ID3":
            tags = 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(tags)
        first = file.read(4096)
    return b"Xing" in first or b"Info" in first


def _cut_page(source: Path | BytesIO) -> bool:
    """Whether an Ogg file ends within a page."""
    with _reading(source) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _HEAD))  # the longest page is shorter
        tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return True
    page = tail[at:]
    if len(page) < 27:
        return True
    count = page[26]
    return len(page) < 27 + count + sum(page[27 : 27 + count])


class _reading:
    """A file's or buffer's bytes, at the beginning; a buffer stays open, and where it was."""

    def __init__(self, source: Path | BytesIO) -> None:
        self.own = isinstance(source, Path)
        self.file: Any = source.open("rb") if isinstance(source, Path) else source

    def __enter__(self) -> Any:
        self.place = self.file.tell()
        self.file.seek(0)
        return self.file

    def __exit__(self, *_: object) -> None:
        if self.own:
            self.file.close()
        else:
            self.file.seek(self.place)
