"""Sounds from files: wav by SciPy, everything else by PyAV (FFmpeg); and from arrays."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, first_line
from .container import guarded, opened
from .content import called, content_of
from .whole import WAV, check_whole, cut_wav

# Sample rates in hertz; what lies outside is a damaged header.
RATES = (100, 1_000_000)
# Channels that an array may have.
MOST_CHANNELS = 32


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples [n] float32 in [-1, 1], the first channel, and the sample rate.

    Raises:
        DataError: missing, truncated or no wav file.
    """
    samples, rate = read_channels(path)
    return samples if samples.ndim == 1 else np.ascontiguousarray(samples[:, 0]), rate


def read_channels(source: Path | BytesIO, where: str | None = None) -> tuple[np.ndarray, int]:
    """Samples [n] or [n, channels] float32 and the sample rate of a wav file, whole numbers scaled to [-1, 1] by the
    range of their type; floats are kept. Codings other than PCM (A-law, mu-law, ...) are PyAV's.

    Args:
        where: how messages call a source that is no file.

    Raises:
        DataError: missing, truncated, no wav file, without sound, or with NaN or Inf in it.
        ConfigError: a coding that needs PyAV, which isn't installed.
    """
    from scipy.io import wavfile

    name = where or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of remarks
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(source)
    except MemoryError:
        raise
    except Exception as error:  # a header's wrong numbers go far before they fail
        why = first_line(error)
        if isinstance(error, OSError) or cut_wav(source):
            why = why if isinstance(error, OSError) else "truncated, or of no samples"
            raise DataError(f"{name}: not a readable wav file ({why}); fetch it again") from None
        return _other_coding(source, name, why)
    if samples.size == 0:
        raise DataError(f"{name}: holds no sound; fetch it again")
    if cut_wav(source):
        raise DataError(f"{name}: not a readable wav file (truncated); fetch it again")
    return _float32(samples, name), checked_rate(rate, name)


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
    """A media file's first sound track as float32 [n], the mean of its channels, and its rate.

    Args:
        rate: to have it at; None: as it is.
        where: how messages call a source that is no file.

    Raises:
        DataError: unreadable, truncated, or without sound.
        ConfigError: PyAV isn't installed.
    """
    blocks, rate = _track(source, where or str(source), rate)
    # FFmpeg's own mixing to mono is louder than the mean by the square root of 2
    return np.concatenate([block.mean(axis=0) for block in blocks]), rate


def decode_audio(value: Any, where: str) -> tuple[np.ndarray, int]:
    """Samples [n] float32, the mean of the channels, and their rate in hertz.

    From a file (bytes or a path: wav, FLAC, MP3, Ogg, a video's sound, whatever FFmpeg reads), from a mapping
    {"array", "sampling_rate"}, or from a decoder of torchcodec. An array's channels are its shorter axis, at most 32.
    Whole numbers are scaled to [-1, 1] by the range of their type (unsigned ones around its middle); those of 64 bits,
    lists among them, by 16 bits where they fit, else by 32. Floats are kept as they are, beyond [-1, 1] too.

    Raises:
        DataError: missing, truncated, empty, NaN or Inf, no sampling rate, or channels that can't be told from samples;
            the message names it.
        ConfigError: a format that needs PyAV, which isn't installed.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        rate = checked_rate(value.get("sampling_rate"), where)
        return _from_array(value["array"], where), rate
    if hasattr(value, "get_all_samples"):
        return _from_decoder(value, where)
    content, name = content_of(value, where), called(value, where)
    if content[:4] not in WAV or content[8:12] not in (b"WAVE", b""):  # AVI is RIFF, too
        return read_sound(io.BytesIO(content), where=name)
    samples, rate = read_channels(io.BytesIO(content), name)
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    return mono.astype(np.float32, copy=False), rate


def checked_rate(rate: Any, name: str) -> int:
    """A sampling rate as a whole number.

    Raises:
        DataError: none, or none that a sound could have.
    """
    low, high = RATES
    try:
        whole = -1 if isinstance(rate, (bool, str, bytes)) else int(rate)
        if low <= whole <= high and whole == rate:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{name}: has {'no sampling rate' if rate is None else f'a sampling rate of {rate}'}; a whole "
                    f"number of hertz from {low:,} to {high:,} is wanted")  # fmt: skip


def _from_array(array: Any, name: str) -> np.ndarray:
    try:
        samples = np.asarray(array)
    except (ValueError, TypeError):
        raise DataError(f"{name}: holds channels of different lengths; make them equal") from None
    if samples.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: holds {'missing samples' if samples.dtype == object else samples.dtype}; give numbers"
        )
    if samples.size == 0:
        raise DataError(f"{name}: holds no sound; leave this instance out")
    if samples.ndim not in (1, 2):
        raise DataError(f"{name}: an array {list(samples.shape)} is no sound; give samples [n] or [channels, n]")
    if samples.ndim == 2:
        few, many = sorted(samples.shape)
        if few > MOST_CHANNELS or few == many > 1:
            raise DataError(f"{name}: which axis of {list(samples.shape)} is the channels can't be told; give the mean "
                            "of the channels, [n]")  # fmt: skip
    scaled = _float32(samples, name)
    return scaled if scaled.ndim == 1 else scaled.mean(axis=int(np.argmin(samples.shape)), dtype=np.float32)


def _from_decoder(decoder: Any, name: str) -> tuple[np.ndarray, int]:
    try:
        found = decoder.get_all_samples()
        samples, rate = np.asarray(found.data), found.sample_rate
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{name}: not a readable sound ({first_line(error)}); fetch it again") from None
    if samples.size == 0:
        raise DataError(f"{name}: holds no sound; leave this instance out")
    scaled = _float32(samples, name)
    return scaled if scaled.ndim == 1 else scaled.mean(axis=0, dtype=np.float32), checked_rate(rate, name)


def _float32(samples: np.ndarray, name: str) -> np.ndarray:
    """Samples of any type as float32, as `decode_audio` states."""
    if samples.dtype.kind in "iu":
        info: Any = np.iinfo(samples.dtype)
        if info.bits == 64:
            info = _narrowest(samples, name)
        centre = 0 if info.min else (info.max + 1) // 2
        scaled: np.ndarray = (samples.astype(np.float32) - centre) / (info.max - centre + 1)
        return scaled.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = samples.astype(np.float32)
        # the energy takes a fraction of the time, and is finite only where all samples are
        flat = scaled.ravel()
        finite = np.isfinite(flat @ flat) or np.isfinite(scaled).all()
    if not finite:
        raise DataError(f"{name}: holds NaN or Inf; mend these samples, or leave it out")
    return scaled


def _narrowest(samples: np.ndarray, name: str) -> Any:
    low, high = int(samples.min()), int(samples.max())
    for info in (np.iinfo(np.int16), np.iinfo(np.int32)):
        if info.min <= low and high <= info.max:
            return info
    raise DataError(f"{name}: holds whole numbers from {low} to {high}; give floats in [-1, 1], or at most 32 bits")


def _other_coding(source: Path | BytesIO, name: str, why: str) -> tuple[np.ndarray, int]:
    """A wav that is whole and not SciPy's: perhaps FFmpeg's."""
    if isinstance(source, BytesIO):
        source.seek(0)
    try:
        blocks, rate = _track(source, name)
        samples = np.concatenate(list(blocks), axis=1).T
    except DataError:
        raise DataError(f"{name}: not a readable wav file ({why}); fetch it again") from None
    return (np.ascontiguousarray(samples[:, 0]) if samples.shape[1] == 1 else samples), rate


def _track(source: Path | BytesIO, name: str, rate: int | None = None) -> tuple[Iterator[np.ndarray], int]:
    """Blocks [channels, n] float32 of the first sound track, and their rate.

    Args:
        rate: to have it at; None: as it is.
    """
    container = opened(source, name)
    if not container.streams.audio:
        container.close()
        raise DataError(f"{name}: has no sound track")
    # a header whose coding FFmpeg doesn't know leaves the stream without a rate
    found = rate or checked_rate(getattr(container.streams.audio[0], "rate", None), name)
    return _blocks(container, source, name, found), found


def _blocks(container: Any, source: Path | BytesIO, name: str, rate: int) -> Iterator[np.ndarray]:
    import av

    with container:
        stream, length, channels = container.streams.audio[0], 0, 0
        # packed: PyAV crashes on planes of eight channels and more
        resampler = av.AudioResampler(format="flt", rate=rate)

        def parts() -> Iterator[Any]:
            for frame in container.decode(stream):
                yield from resampler.resample(frame)
            # where it has nothing to do, it gives the end back
            yield from (part for part in resampler.resample(None) if part is not None)

        for part in guarded(name, parts()):
            block = part.to_ndarray().reshape(-1, part.layout.nb_channels).T
            channels = channels or len(block)
            if len(block) != channels or part.sample_rate != rate:
                raise DataError(f"{name}: its channels or sampling rate change within; cut it there")
            length += block.shape[1]
            if not np.isfinite(block).all():
                raise DataError(f"{name}: holds NaN or Inf; fetch it again")
            yield block
        if not length:
            raise DataError(f"{name}: has no sound")
        check_whole(container, source, length, rate, name)
