"""Sounds from files: wav by SciPy, everything else by PyAV (FFmpeg)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, first_line
from .container import guarded, opened
from .content import content_of


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples [n] float32 in [-1, 1], the first channel, and the sample rate.

    Raises:
        DataError: missing, truncated or no PCM wav file.
    """
    samples, rate = read_channels(path)
    return samples if samples.ndim == 1 else np.ascontiguousarray(samples[:, 0]), rate


def read_channels(source: Path | BytesIO, where: str | None = None) -> tuple[np.ndarray, int]:
    """Samples [n] or [n, channels] float32 in [-1, 1] and the sample rate; see `read_wav`.

    Args:
        where: how messages call a source that is no file.
    """
    import warnings

    from scipy.io import wavfile

    name = where or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of remarks
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(source)
    except (OSError, ValueError, wavfile.WavFileWarning, EOFError) as error:
        raise DataError(f"{name}: not a readable wav file ({first_line(error)}); fetch it again") from None
    if samples.size == 0:
        raise DataError(f"{name}: holds no sound; fetch it again")
    if np.issubdtype(samples.dtype, np.integer):
        info = np.iinfo(samples.dtype)
        centre = 128 if samples.dtype == np.uint8 else 0
        samples = (samples.astype(np.float32) - centre) / (info.max - centre + 1)
    return samples.astype(np.float32), int(rate)


def read_mono(path: Path) -> tuple[np.ndarray, int]:
    """Samples [n] float32 of a wav file, the mean of its channels, and the sample rate.

    Raises:
        DataError: no readable wav file, or one that holds nothing but silence.
    """
    samples, rate = read_channels(path)
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not mono.any():
        raise DataError(f"{path}: nothing but silence")
    return mono.astype(np.float32), rate


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
    with opened(source, name) as container:
        import av

        if not container.streams.audio:
            raise DataError(f"{name}: has no sound track")
        stream = container.streams.audio[0]
        rate = rate or int(stream.rate)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in guarded(name, container.decode(stream)):
            blocks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        blocks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not blocks:
        raise DataError(f"{name}: has no sound")
    return np.concatenate(blocks).astype(np.float32), rate


def decode_audio(value: Any, where: str) -> tuple[np.ndarray, int]:
    """Samples [n] float32, the mean of the channels, and their rate."""
    if isinstance(value, Mapping) and value.get("array") is not None:
        samples, rate = np.asarray(value["array"], dtype=np.float32), int(value["sampling_rate"])
    else:
        content = content_of(value, where)
        if content[:4] in (b"RIFF", b"RIFX", b"RF64"):
            samples, rate = read_channels(io.BytesIO(content), where)
        else:
            samples, rate = read_sound(io.BytesIO(content), where=where)
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if mono.size == 0:
        raise DataError(f"{where} holds no sound")
    return mono.astype(np.float32), rate
