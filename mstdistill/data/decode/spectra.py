"""From waveforms to what networks see: each task's spectrograms, by the arithmetic of `dsp.py`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError
from . import dsp

# A filter for each phase takes gigabytes where two rates have no divisor in common (11,127 and 16,000 Hz).
_LARGEST_FILTERS = 1 << 24


def log_mel(wave: Tensor, sample_rate: int, n_mels: int, frames: int, n_fft: int = 512) -> Tensor:
    """Log-mel spectrograms [..., n_mels, frames] of waveforms [..., n], in natural logarithm of power."""
    hop = max(1, wave.shape[-1] // (frames - 1))
    mel = dsp.mel_power(wave, sample_rate, fft=n_fft, hop=hop, mels=n_mels, low=60.0)
    return (mel[..., :frames] + 1e-6).log()


def resample(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """Waveforms [..., n] at another sample rate."""
    if rate == new_rate:
        return wave
    common = math.gcd(rate, new_rate)
    if (rate // common) * (new_rate // common) > _LARGEST_FILTERS:
        from scipy.signal import resample_poly

        found = resample_poly(wave.numpy(), new_rate // common, rate // common, axis=-1)
        return torch.from_numpy(found.astype(np.float32))
    return dsp.resample(wave, rate, new_rate)


def resample_kaiser(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """Waveforms [..., n] at another sample rate as the paper's authors convert files: a sinc under a long
    Kaiser window, kept in 16 bits; what is beyond [-1, 1] is clipped.

    Raises:
        DataError: rates with so small a common divisor that the filters would take gigabytes.
    """
    common = math.gcd(rate, new_rate)
    if (rate // common) * (new_rate // common) > _LARGEST_FILTERS:
        raise DataError(f"sound at {rate:,} Hz can't be resampled with the authors' filter; leave --released out")
    converted = dsp.resample(wave, rate, new_rate, width=64, rolloff=0.9475937167399596, beta=14.769656459379492)
    return (converted * 32768).round().clamp(-32768, 32767) / 32768


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


def fit_length(wave: Tensor, length: int) -> Tensor:
    """Waveforms [..., n] of exactly `length` samples: zeros at the end, or cropped evenly at both sides."""
    extra = wave.shape[-1] - length
    if extra <= 0:
        return torch.nn.functional.pad(wave, (0, -extra))
    return wave[..., extra // 2 : extra // 2 + length]


def loudest(wave: Tensor, length: int) -> Tensor:
    """The window [length] of a waveform [n] with the most energy, of unit root mean square where it sounds; what is
    shorter stands in the middle of silence.

    Raises:
        DataError: silence.
    """
    missing = max(0, length - wave.shape[-1])
    wave = torch.nn.functional.pad(wave, (missing // 2, missing - missing // 2))
    energy = torch.cat([torch.zeros(1, dtype=torch.float64), wave.double().square().cumsum(0)])
    start = int((energy[length:] - energy[:-length]).argmax())
    window = wave[start : start + length]
    level = window.abs()
    if float(level.max()) < 1e-4:
        raise DataError("nothing but silence; record it again, closer")
    sounds = window[level > 0.05 * level.max()]
    return window / sounds.square().mean().sqrt()


def trimmed(wave: Tensor) -> Tensor:
    """A waveform [n] without the silence before and after what sounds.

    Raises:
        DataError: silence.
    """
    level = wave.abs()
    if float(level.max()) < 1e-4:
        raise DataError("nothing but silence; record it again, closer")
    sounds = (level > 0.05 * level.max()).nonzero()[:, 0]
    return wave[int(sounds[0]) : int(sounds[-1]) + 1]


def mfcc(wave: Tensor, sample_rate: int, coefficients: int) -> Tensor:
    """MFCCs [coefficients, 1 + n // 512] of a waveform [n], with librosa's defaults (data protocol, RAVDESS): Hann
    windows of 2,048 samples every 512, 128 Slaney mels of the power, decibels with a range of 80, orthonormal DCT."""
    return dsp.mfcc(wave, sample_rate, coefficients, fft=2048, hop=512, mels=128, scale="slaney", slaney_norm=True,
                    pad_mode="constant")  # fmt: skip


def vggish_patches(wave: Tensor, seconds: int, bands: int = 64, frames: int = 96) -> Tensor:
    """Log-mel patches [seconds, frames, bands] of a waveform [n] at 16 kHz, one a second, as VGGish takes them: windows
    of 25 ms every 10 ms, FFT length 512, magnitudes, 64 HTK mels from 125 to 7,500 Hz, log(mel + 0.01); the first
    0.96 s of each second. Missing seconds are silence."""
    wave = torch.nn.functional.pad(wave, (0, max(0, seconds * 16000 - wave.shape[-1])))[: seconds * 16000]
    windows = wave.view(seconds, 16000).unfold(1, 400, 160)[:, :frames]
    spectrum = torch.fft.rfft(windows * torch.hann_window(400), n=512).abs()
    return (spectrum @ dsp.mel_filters(16000, 512, bands, 125.0, 7500.0, "htk", False) + 0.01).log()
