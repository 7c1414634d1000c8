"""Mel spectrograms, MFCCs and resampling: torchaudio's where it loads, else the same numbers by SciPy and transformers.

torchaudio's last release loads only beside a torch of its own CUDA version: beside a build for CPUs, or for ROCm, it is
installed and broken. Then nothing may import it, transformers' processors neither, which look for it by its name.
Between the two forms lie roundings: docs/data.md has their sizes.
"""

from __future__ import annotations

import math
import sys
import warnings
from functools import cache, lru_cache
from importlib import import_module
from multiprocessing import parent_process
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ... import ranks
from ...errors import first_line

Scale = Literal["htk", "slaney"]


@cache
def torchaudio() -> Any:
    """The package, or None where it isn't installed or can't be loaded, which is said once, by the main process.

    Whoever starts processes that read sounds calls this before.
    """
    try:
        found = import_module("torchaudio")
        import_module("torchaudio.transforms")
        return found
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            _without(error)
    except Exception as error:  # a library that isn't this torch's: OSError, ImportError, RuntimeError, AttributeError
        _without(error)
    return None


def _without(error: Exception) -> None:
    """Do as if torchaudio weren't installed, for everybody in this process."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
    looked = sys.modules.get("transformers.utils.import_utils")  # it may have looked before, and remembers
    for name in ("is_torchaudio_available", "is_speech_available"):
        getattr(getattr(looked, name, None), "cache_clear", bool)()
    if parent_process() is None and ranks.local_rank() == 0:
        print(f"mstdistill: torchaudio can't be loaded beside torch {torch.__version__} ({first_line(error, 100)}); "
              "sounds are computed by SciPy, to rounding the same; without this line: pip uninstall torchaudio",
              file=sys.stderr)  # fmt: skip


def mel_power(
    wave: Tensor, rate: int, *, fft: int, hop: int, mels: int, low: float = 0.0, scale: Scale = "htk",
    slaney_norm: bool = False, pad_mode: str = "reflect",
) -> Tensor:  # fmt: skip
    """Mel spectrograms [..., mels, 1 + n // hop] of the power of waveforms [..., n]: centred Hann windows of `fft`
    samples.

    Args:
        low: Hz where the first filter begins; the last ends at half the rate.
        slaney_norm: filters of equal area rather than equal height.
    """
    known = torchaudio()
    if known is not None:
        made: Tensor = _mel_transform(known, rate, fft, hop, mels, low, scale, slaney_norm, pad_mode)(wave)
        return made
    spectrum = torch.stft(
        wave.reshape(-1, wave.shape[-1]), fft, hop, window=torch.hann_window(fft, dtype=wave.dtype), center=True,
        pad_mode=pad_mode, return_complex=True,
    )  # fmt: skip
    power = spectrum.abs().square()
    filters = mel_filters(rate, fft, mels, low, rate / 2, scale, slaney_norm).to(wave.dtype)
    return (filters.t() @ power).reshape(*wave.shape[:-1], mels, -1)


@lru_cache(maxsize=8)
def _mel_transform(known: Any, rate: int, fft: int, hop: int, mels: int, low: float, scale: Scale, slaney_norm: bool,
                   pad_mode: str) -> Any:  # fmt: skip
    return known.transforms.MelSpectrogram(
        rate, n_fft=fft, hop_length=hop, n_mels=mels, f_min=low, power=2.0, norm="slaney" if slaney_norm else None,
        mel_scale=scale, pad_mode=pad_mode,
    )  # fmt: skip


@lru_cache(maxsize=8)
def mel_filters(
    rate: int, fft: int, mels: int, low: float, high: float, scale: Scale, slaney_norm: bool
) -> Tensor:  # fmt: skip
    """Triangular filters [1 + fft // 2, mels] from `low` to `high` Hz."""
    known = torchaudio()
    norm = "slaney" if slaney_norm else None
    if known is not None:
        found: Tensor = known.functional.melscale_fbanks(
            1 + fft // 2, low, high, mels, rate, norm=norm, mel_scale=scale
        )
        return found
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of filters narrower than a line of the spectrum
        bank = mel_filter_bank(1 + fft // 2, mels, low, high, rate, norm=norm, mel_scale=scale)
    return torch.from_numpy(bank).to(torch.float32)


def mfcc(
    wave: Tensor, rate: int, coefficients: int, *, fft: int, hop: int, mels: int, scale: Scale, slaney_norm: bool,
    pad_mode: str,
) -> Tensor:  # fmt: skip
    """MFCCs [..., coefficients, 1 + n // hop] of waveforms [..., n]: an orthonormal DCT of decibels of mel power, whose
    range is 80 below the greatest."""
    known = torchaudio()
    if known is not None:
        made: Tensor = _mfcc_transform(known, rate, coefficients, fft, hop, mels, scale, slaney_norm, pad_mode)(wave)
        return made
    power = mel_power(wave, rate, fft=fft, hop=hop, mels=mels, scale=scale, slaney_norm=slaney_norm, pad_mode=pad_mode)
    decibels = 10.0 * power.clamp(min=1e-10).log10()
    greatest = decibels.amax(dim=(-2, -1), keepdim=True)
    decibels = torch.maximum(decibels, greatest - 80.0)
    return (decibels.transpose(-1, -2) @ _dct(mels, coefficients).to(wave.dtype)).transpose(-1, -2)


@lru_cache(maxsize=8)
def _mfcc_transform(known: Any, rate: int, coefficients: int, fft: int, hop: int, mels: int, scale: Scale,
                    slaney_norm: bool, pad_mode: str) -> Any:  # fmt: skip
    mel = {"n_fft": fft, "hop_length": hop, "n_mels": mels, "power": 2.0, "norm": "slaney" if slaney_norm else None,
           "mel_scale": scale, "pad_mode": pad_mode}  # fmt: skip
    return known.transforms.MFCC(rate, n_mfcc=coefficients, dct_type=2, norm="ortho", log_mels=False, melkwargs=mel)


@lru_cache(maxsize=8)
def _dct(size: int, kept: int) -> Tensor:
    """[size, kept], the first columns of the orthonormal DCT of type 2."""
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(size), type=2, norm="ortho", axis=1)[:, :kept].copy())


def resample(
    wave: Tensor, rate: int, new_rate: int, *, width: int = 6, rolloff: float = 0.99, beta: float | None = None
) -> Tensor:
    """Waveforms [..., n] at another rate, [..., ceil(n new_rate / rate)]: a sinc of `width` zero crossings on each side
    under a Hann window, or a Kaiser window of `beta`, that passes `rolloff` of the lower half rate."""
    common = math.gcd(rate, new_rate)
    old, new = rate // common, new_rate // common
    if old == new:
        return wave
    known = torchaudio()
    if known is not None:
        converted: Tensor = _resampler(known, old, new, width, rolloff, beta, wave.dtype)(wave)
        return converted
    from scipy.signal import resample_poly

    found = resample_poly(wave.numpy(), new, old, axis=-1, window=_taps(old, new, width, rolloff, beta))
    return torch.from_numpy(np.ascontiguousarray(found)).to(wave.dtype)


@lru_cache(maxsize=8)
def _resampler(
    known: Any, old: int, new: int, width: int, rolloff: float, beta: float | None, dtype: torch.dtype
) -> Any:
    method = "sinc_interp_hann" if beta is None else "sinc_interp_kaiser"
    made = known.transforms.Resample(
        old, new, lowpass_filter_width=width, rolloff=rolloff, beta=beta, resampling_method=method
    )
    return made.to(dtype)


@lru_cache(maxsize=8)
def _taps(old: int, new: int, width: int, rolloff: float, beta: float | None) -> np.ndarray:
    """The filter between the samples of both rates, as long as its window: an odd number of taps."""
    cut = min(old, new) * rolloff  # in the units of the reduced rates
    half = math.floor(width * old * new / cut)
    t = np.arange(-half, half + 1) / (old * new) * cut  # in zero crossings
    if beta is None:
        window = np.cos(np.pi * t / width / 2) ** 2
    else:
        window = np.i0(beta * np.sqrt(np.clip(1 - (t / width) ** 2, 0, None))) / np.i0(beta)
    taps: np.ndarray = np.sinc(t) * window * cut / (old * new)
    return taps
