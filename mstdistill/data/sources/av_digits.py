"""av-digits: real handwritten digits with synthesised spoken ones; needs no download and is ready in seconds.

Images are scikit-learn's 1,797 digits (8x8, UCI optical recognition set), degraded so that a student who sees them
alone needs help. The spoken digit of each comes from espeak-ng in one of many voices, pitches and speeds, with
background noise, as a log-mel spectrogram. Splits share no digit image and no (voice, pitch, speed) combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..decode.ink import ink
from ..decode.spectra import log_mel, loudest, resample
from ..options import Option
from ..prepared.plan import Watcher
from ..prepared.store import write
from ..task import SPLITS, Form, Task
from .speech import LICENCE, Speaker

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4")
PITCHES = (25, 40, 55, 70, 85)
SPEEDS = (120, 150, 180, 210)

SEED = 20251027
IMAGE_NOISE = 0.35  # standard deviation, on pixels in [0, 1]
SAMPLE_RATE = 8000
WINDOW_SECONDS = 0.8
NOISE_DB = (5.0, 20.0)  # background noise below the voice
MELS, FRAMES = 32, 32
SHARES = (0.6, 0.2, 0.2)


def prepare(folder: Path, screen: Watcher | None = None, seed: int = SEED, image_noise: float = IMAGE_NOISE) -> Path:
    """Make the data set in `folder` (a few seconds); the same seed gives the same data.

    Args:
        image_noise: standard deviation of the Gaussian noise on pixels in [0, 1].
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    cuts = np.cumsum([round(share * len(labels)) for share in SHARES])[:2]
    combinations = [(a + v, p, s) for a in ACCENTS for v in VARIANTS for p in PITCHES for s in SPEEDS]
    generator.shuffle(combinations)
    voices = np.split(np.arange(len(combinations)), (np.cumsum(SHARES)[:2] * len(combinations)).astype(int))
    splits = {}
    speaker = Speaker(seed)
    for name, members, own in zip(SPLITS, np.split(order, cuts), voices, strict=True):
        image = digits.images[members].astype(np.float32)[:, None] / 16.0
        noisy = image + image_noise * generator.standard_normal(image.shape).astype(np.float32)
        chosen = [combinations[own[i % len(own)]] for i in range(len(members))]
        waves = [
            _spoken(speaker, int(label), who, generator) for label, who in zip(labels[members], chosen, strict=True)
        ]
        splits[name] = {
            "image": np.clip(noisy, 0.0, 1.0).astype(np.float32),
            "audio": _pictures(torch.stack(waves)),
            "label": labels[members],
            "source": members.astype(np.int64),
            "voice": own[np.arange(len(members)) % len(own)].astype(np.int64),
        }
    speaker.close()
    card = {
        "task": TASK.name,
        "version": TASK.version,
        "title": TASK.title,
        "seed": seed,
        "image_noise": image_noise,
        "sample_rate": SAMPLE_RATE,
        "sources": {
            "images": "scikit-learn load_digits: UCI optical recognition of handwritten digits (CC BY 4.0)",
            "audio": LICENCE,
        },
    }
    return write(folder, splits, card)


def _spoken(speaker: Speaker, label: int, who: tuple[str, int, int], generator: np.random.Generator) -> torch.Tensor:
    """A digit said by a (voice, pitch, speed), at SAMPLE_RATE, somewhere in a window of noise."""
    voice, pitch, speed = who
    said = speaker.say(WORDS[label], voice, pitch, speed)
    window = np.zeros(int(WINDOW_SECONDS * speaker.sample_rate), dtype=np.float32)
    start = int(generator.integers(0, max(1, len(window) - len(said))))
    part = said[: len(window) - start]
    window[start : start + len(part)] = part / max(float(np.sqrt(np.mean(part**2))), 1e-6)
    level = 10 ** (-generator.uniform(*NOISE_DB) / 20.0)
    window += level * generator.standard_normal(len(window)).astype(np.float32)
    return resample(torch.from_numpy(window), speaker.sample_rate, SAMPLE_RATE)


def _pictures(waves: torch.Tensor) -> np.ndarray:
    """Log-mel spectrograms [N, 1, MELS, FRAMES] of waveforms [N, n], each standardised."""
    picture = log_mel(waves, SAMPLE_RATE, MELS, FRAMES, n_fft=256)
    spread, mean = torch.std_mean(picture, dim=(1, 2), keepdim=True)
    return ((picture - mean) / (spread + 1e-6)).unsqueeze(1).numpy()


def drawn(picture: Any, card: Mapping[str, Any]) -> np.ndarray:
    """A drawn digit as the data's [1, 8, 8]: cut to its ink, as high as the tile; the data's noise is left out.

    Raises:
        DataError: nothing is drawn.
    """
    return ink(picture, 8, 8)[None]


def heard(sound: tuple[np.ndarray, int], card: Mapping[str, Any]) -> np.ndarray:
    """A recorded digit as the data's [1, MELS, FRAMES]: the loudest window, over noise as weak as the data's weakest,
    without which silence would be a level that no training instance has.

    Raises:
        DataError: silence.
    """
    samples, rate = sound
    wave = loudest(resample(torch.from_numpy(samples), rate, SAMPLE_RATE), round(WINDOW_SECONDS * SAMPLE_RATE))
    noise = torch.from_numpy(np.random.default_rng(SEED).standard_normal(wave.shape[-1]).astype(np.float32))
    return _pictures((wave + 10 ** (-NOISE_DB[1] / 20.0) * noise)[None])[0]


TASK = Task(
    name="av-digits",
    title="handwritten digits (scikit-learn) with spoken digits (espeak-ng); embedded",
    modalities={"image": (1, 8, 8), "audio": (1, MELS, FRAMES)},
    forms={"image": Form("image"), "audio": Form("audio")},
    raw={"image": drawn, "audio": heard},
    num_classes=10,
    class_names=tuple(str(i) for i in range(10)),
    prepare=prepare,
    embedded=True,
    options={
        "seed": Option("seed of splits, voices and noise", int, SEED, least=0, most=2**31 - 1),
        "image_noise": Option("standard deviation of the noise on pixels in [0, 1]", float, IMAGE_NOISE, least=0),
    },
)
