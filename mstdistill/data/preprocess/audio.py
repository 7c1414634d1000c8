"""From waveforms to spectrograms, by torchaudio."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError


@lru_cache(maxsize=8)
def _mel(sample_rate: int, n_mels: int, n_fft: int, hop: int) -> Any:
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(sample_rate, n_fft=n_fft, hop_length=hop, n_mels=n_mels, f_min=60.0, power=2.0)


def log_mel(wave: Tensor, sample_rate: int, n_mels: int, frames: int, n_fft: int = 512) -> Tensor:
    """Log-mel spectrograms [..., n_mels, frames] of waveforms [..., n], in natural logarithm of power."""
    hop = max(1, wave.shape[-1] // (frames - 1))
    mel: Tensor = _mel(sample_rate, n_mels, n_fft, hop)(wave)
    return (mel[..., :frames] + 1e-6).log()


@lru_cache(maxsize=8)
def _resampler(rate: int, new_rate: int) -> Any:
    from torchaudio.transforms import Resample

    return Resample(rate, new_rate)


def resample(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """Waveforms [..., n] at another sample rate."""
    converted: Tensor = wave if rate == new_rate else _resampler(rate, new_rate)(wave)
    return converted


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples [n] float32 in [-1, 1], the first channel, and the sample rate.

    Raises:
        DataError: missing, truncated or no PCM wav file.
    """
    import warnings

    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except (OSError, ValueError, wavfile.WavFileWarning, EOFError) as error:
        raise DataError(f"{path}: not a readable wav file ({error}); fetch it again") from None
    samples = samples if samples.ndim == 1 else samples[:, 0]
    if samples.size == 0:
        raise DataError(f"{path}: holds no sound; fetch it again")
    if np.issubdtype(samples.dtype, np.integer):
        info = np.iinfo(samples.dtype)
        centre = 128 if samples.dtype == np.uint8 else 0
        samples = (samples.astype(np.float32) - centre) / (info.max - centre + 1)
    return samples.astype(np.float32), int(rate)


def square_spectrogram(wave: Tensor, size: int = 112) -> Tensor:
    """Power spectrogram [size, size] of a waveform [n] of any length: rectangular window, FFT length 2*size - 1,
    segment and hop chosen so that exactly `size` frames come out (data protocol, AV-MNIST)."""
    fft = 2 * size - 1
    length = wave.shape[-1]
    if length < fft:
        wave = torch.nn.functional.pad(wave, (0, fft - length))
        length = fft
    hop = max(1, -(-(length - fft) // (size - 1)))
    segment = min(fft, length - hop * (size - 1))
    if segment < 1:
        hop = (length - 1) // (size - 1)
        segment = min(fft, length - hop * (size - 1))
    window = torch.zeros(fft, dtype=wave.dtype)
    window[:segment] = 1.0
    padded = torch.nn.functional.pad(wave, (0, fft))
    frames = padded.unfold(0, fft, hop)[:size] * window
    return torch.fft.rfft(frames, n=fft).abs().square().t().contiguous()


def min_max(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Each instance [N, ...] scaled to [0, 1]; constant ones become 0 and are counted (data protocol, quirk 13)."""
    flat = values.reshape(len(values), -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    spread = high - low
    constant = int((spread == 0).sum())
    scaled = np.where(spread == 0, 0.0, (flat - low) / np.where(spread == 0, 1.0, spread))
    return scaled.reshape(values.shape).astype(np.float32), constant
