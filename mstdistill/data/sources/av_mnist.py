"""AV-MNIST from its publishers' files: MNIST (idx) with Free Spoken Digit recordings (wav), optionally ESC-50 noise.

Images keep a quarter of their principal components; each gets a recording of its digit, in turn, as a 112 x 112
spectrogram. Training images hear three speakers, test images a fourth, as published; the parts are merged before the
split of the data protocol (60/20/20 by seed group). Or, from the paper's authors, their preprocessed arrays.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, DataError
from ..decode import dsp
from ..decode.ink import ink
from ..decode.sound import read_wav
from ..decode.spectra import min_max, resample, square_spectrogram, trimmed
from ..options import WORKERS, Option, max_broken
from ..prepared.build import build
from ..prepared.plan import SOURCES, Column, Item, Plan, Watcher
from ..task import Form, Task
from .files import sha256, source_folder
from .released.av_mnist import arrays_below, plan_of

COMPONENTS = 196
NOISE_GAIN = 0.009
RATE = 8000  # of Free Spoken Digit recordings
TRAIN_SPEAKERS = ("jackson", "nicolas", "theo")
TEST_SPEAKERS = ("yweweler",)
_FILES = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}


def prepare(
    folder: Path,
    screen: Watcher,
    mnist: str | None = None,
    fsdd: str | None = None,
    noise: str | None = None,
    train_speakers: Sequence[str] = TRAIN_SPEAKERS,
    test_speakers: Sequence[str] = TEST_SPEAKERS,
    dtype: str = "float16",
    workers: int | None = None,
    max_broken: float = 0.0,
    source: str | None = None,
) -> Path:
    """Build AV-MNIST in `folder`.

    Args:
        mnist: folder of MNIST's idx files, gzipped or not, or one that holds torchvision's `MNIST/raw`. Where only the
            10,000 test images are there, their first six sevenths take the training images' part.
        fsdd: folder of Free Spoken Digit recordings (`{digit}_{speaker}_{take}.wav`).
        noise: folder of ESC-50 clips (wav), mixed in at 0.009 of their level; optional.
        dtype: how features are stored.
        workers, max_broken: see `build`.
        source: in place of these files: the authors' preprocessed `avmnist`, or a folder that holds it.

    Raises:
        DataError: missing, truncated or swapped files.
        ConfigError: `source` beside an option that is of the publishers' files.
    """
    if source is not None:
        raw = {"mnist": mnist, "fsdd": fsdd, "noise": noise}
        given = [f"--{name}" for name, value in raw.items() if value is not None]
        if tuple(train_speakers) != TRAIN_SPEAKERS or tuple(test_speakers) != TEST_SPEAKERS:
            given.append("--train-speakers, --test-speakers")
        if given:
            raise ConfigError(f"{TASK.name}: --source is the authors' preprocessed arrays, {given[0]} is of the "
                              "publishers' files; give one or the other")  # fmt: skip
        arrays = arrays_below(source_folder(TASK.name, source))
        if arrays is None:
            raise DataError(f"{source}: no avmnist/{{image,audio}}/{{train,test}}_data.npy below it; the publishers' "
                            "files go with --mnist DIR --fsdd DIR")  # fmt: skip
        return build(folder, plan_of(arrays, TASK, dtype), screen, workers, max_broken)
    usage = "--mnist DIR --fsdd DIR [--noise DIR], or --source DIR"
    pictures, sounds = (source_folder(TASK.name, given, usage) for given in (mnist, fsdd))
    pictures = _mnist_folder(pictures)
    images, labels, is_test, note = _read_mnist(pictures)
    clips = _read_noise(Path(noise)) if noise else []
    recordings = _index_recordings(sounds)
    kept, mean = _keep_components(images)
    items, turn = [], dict[tuple[bool, int], int]()
    for i, label in enumerate(labels):
        part = bool(is_test[i])
        takes = _takes(recordings, int(label), test_speakers if part else train_speakers, sounds)
        number = turn.get((part, int(label)), 0)
        turn[part, int(label)] = number + 1
        heard = (kept[i], takes[number % len(takes)], _clip(clips, part, i))
        items.append(Item(f"{'test' if part else 'train'} image {i}", heard, int(label), 2 if part else 0))
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={"image": Column((1, 28, 28), dtype), "audio": Column((1, 112, 112), dtype)},
        items=items,
        read=_read,
        settings={
            "train_speakers": list(train_speakers), "test_speakers": list(test_speakers), "noise": bool(clips),
            "dtype": dtype,
        },
        order="train images, then test images",
        card={
            "title": TASK.title,
            "note": note,
            "components": COMPONENTS,
            "mean_image": [round(float(x), 5) for x in mean],
            "sources": {
                "images": "MNIST (CC BY-SA 3.0)",
                "audio": "Free Spoken Digit Dataset (CC BY-SA 4.0)",
                "sha256": {path.name: sha256(path) for path in sorted(pictures.glob("*ubyte*")) if path.is_file()},
            },
        },
    )  # fmt: skip
    dsp.torchaudio()  # should it be broken, that is said here, not by each reader
    return build(folder, plan, screen, workers, max_broken)


def _read(source: tuple[np.ndarray, Path, tuple[torch.Tensor, int] | None]) -> dict[str, Any]:
    """An image [1, 28, 28] and its digit's spectrogram [1, 112, 112], each scaled to [0, 1]."""
    image, path, clip = source
    image, _ = min_max(image.reshape(1, 28, 28))
    heard, _ = min_max((_hear_once(path) if clip is None else _hear(path, clip))[None])
    return {"image": image, "audio": heard, SOURCES: {path.name: _checksum(path)}}


@lru_cache(maxsize=4096)
def _hear_once(path: Path) -> np.ndarray:
    return _hear(path, None)


@lru_cache(maxsize=4096)
def _checksum(path: Path) -> str:
    return sha256(path)


def _read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Images [N, 784] in [0, 1], labels [N], whether each plays a test image, and a note for the card."""
    parts = []
    for part, names in _FILES.items():
        found = {name: path for name in names if (path := _locate(folder, name)) is not None}
        if not found:
            continue
        for name in names:
            if name not in found:
                raise DataError(f"{folder}: {name}-idx*-ubyte[.gz] is missing; fetch MNIST's files again")
        pixels, classes = read_idx(found[names[0]], 3), read_idx(found[names[1]], 1)
        if len(pixels) != len(classes):
            raise DataError(f"{folder}: {len(pixels)} images but {len(classes)} labels: files of different parts")
        if pixels.shape[1:] != (28, 28) or classes.max(initial=0) > 9:
            raise DataError(f"{folder}: {names[0]} holds {list(pixels.shape[1:])} images, not MNIST's 28x28 digits")
        parts.append((part, pixels.reshape(len(pixels), 784).astype(np.float32) / 255.0, classes))
    if not parts:
        raise DataError(f"{folder}: no MNIST files (train-images-idx3-ubyte[.gz], t10k-images-idx3-ubyte[.gz], ...)")
    images = np.concatenate([pixels for _, pixels, _ in parts])
    labels = np.concatenate([classes for _, _, classes in parts]).astype(np.int64)
    if {part for part, _, _ in parts} == {"train", "test"}:
        is_test = np.concatenate([np.full(len(classes), part == "test") for part, _, classes in parts])
        return images, labels, is_test, "MNIST's own training and test images"
    note = f"only MNIST's {parts[0][0]} images were given: the first six sevenths take the training images' part"
    return images, labels, np.arange(len(labels)) >= len(labels) * 6 // 7, note


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not.

    Raises:
        DataError: truncated, or another kind of file (swapped images and labels, say).
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be unpacked ({error}): truncated or damaged; fetch it again") from None
    if len(raw) < 4 + 4 * dimensions or raw[:2] != b"\0\0" or raw[2] != 8:
        raise DataError(f"{path}: not an idx file of bytes; fetch it again")
    if raw[3] != dimensions:
        kind = {1: "labels", 3: "images"}
        raise DataError(
            f"{path}: holds {kind.get(raw[3], f'{raw[3]}-d data')} where {kind.get(dimensions)} belong; swapped files?"
        )
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    if data.size != int(np.prod(shape)):
        raise DataError(f"{path}: {data.size} bytes of data where its header says {int(np.prod(shape))}: truncated")
    return data.reshape(shape)


def _mnist_folder(folder: Path) -> Path:
    """Where the idx files are: there, or in `MNIST/raw` below, as torchvision has them (other sets lie beside it).

    Raises:
        DataError: there are several.
    """
    places = [folder, folder / "raw", *sorted(folder.rglob("MNIST/raw"))]
    found = [path for path in places if any(_locate(path, name) for names in _FILES.values() for name in names)]
    if len(found) > 1 and found[0] != folder:
        raise DataError(f"{folder}: {found[0]} and {found[1]} both hold MNIST's files; name one of them")
    return found[0] if found else folder


def _locate(folder: Path, start: str) -> Path | None:
    """A file by the start of its name, whose ending is written `-idx3-ubyte` or `.idx3-ubyte`; plain before gzipped."""
    found = [path for path in folder.glob("*") if path.name.replace(".", "-").startswith(start + "-idx")]
    return min((path for path in found if path.is_file()), key=lambda path: (path.suffix == ".gz", path), default=None)


def _keep_components(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projected onto the first 196 principal components and back, without the mean (data protocol); and the mean."""
    from sklearn.decomposition import PCA

    if len(images) < COMPONENTS:
        raise DataError(f"{len(images)} images are too few for {COMPONENTS} principal components")
    pca = PCA(n_components=COMPONENTS, svd_solver="covariance_eigh").fit(images)
    return (pca.transform(images) @ pca.components_).astype(np.float32), pca.mean_


def _index_recordings(folder: Path) -> dict[tuple[int, str], list[Path]]:
    folder = folder / "recordings" if (folder / "recordings").is_dir() else folder
    found: dict[tuple[int, str], list[Path]] = {}
    for path in folder.glob("*.wav"):
        fields = path.stem.split("_")
        if len(fields) == 3 and fields[0].isdigit() and fields[2].isdigit():
            found.setdefault((int(fields[0]), fields[1]), []).append(path)
    if not found:
        raise DataError(f"{folder}: no Free Spoken Digit recordings (files named digit_speaker_take.wav)")
    for takes in found.values():
        takes.sort(key=lambda path: int(path.stem.split("_")[2]))
    return found


def _takes(
    recordings: dict[tuple[int, str], list[Path]], digit: int, speakers: Sequence[str], folder: Path
) -> list[Path]:
    takes = [path for speaker in speakers for path in recordings.get((digit, speaker), [])]
    if not takes:
        have = sorted({speaker for _, speaker in recordings})
        raise DataError(f"{folder}: no recording of digit {digit} by {', '.join(speakers)}; speakers there: {have}")
    return takes


def _read_noise(folder: Path) -> list[tuple[torch.Tensor, int]]:
    """One clip per ESC-50 class (`fold-id-take-class.wav`), in class order; else every clip in name order."""
    by_class: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.wav")):
        by_class.setdefault(path.stem.split("-")[-1] if path.stem.count("-") >= 3 else path.stem, path)
    if not by_class:
        raise DataError(f"{folder}: no wav clips for the noise")
    clips = []
    for _, path in sorted(by_class.items(), key=lambda item: (not item[0].isdigit(), item[0].zfill(4))):
        samples, rate = read_wav(path)
        clips.append((torch.from_numpy(samples), rate))
    return clips


def _clip(clips: list[tuple[torch.Tensor, int]], is_test: bool, turn: int) -> tuple[torch.Tensor, int] | None:
    """The noise of an image: four fifths of the clips serve training images, the rest test images."""
    if not clips:
        return None
    cut = max(1, len(clips) * 4 // 5)
    pool = clips[cut:] if is_test and len(clips) > cut else clips[:cut]
    return pool[turn % len(pool)]


def _hear(path: Path, clip: tuple[torch.Tensor, int] | None) -> np.ndarray:
    samples, rate = read_wav(path)
    wave = torch.from_numpy(samples)
    if clip is not None:
        noise, noise_rate = clip
        low = min(rate, noise_rate)
        wave, noise = resample(wave, rate, low), resample(noise, noise_rate, low)
        wave = wave + NOISE_GAIN * noise.repeat(-(-len(wave) // len(noise)))[: len(wave)]
    return square_spectrogram(wave).numpy()


def drawn(picture: Any, card: Mapping[str, Any]) -> np.ndarray:
    """A drawn digit as the data's [1, 28, 28]: 20 pixels high as MNIST's, without the mean picture, scaled to [0, 1];
    what the principal components leave out stays in.

    Raises:
        DataError: nothing is drawn, or the data don't tell their mean picture.
    """
    if "mean_image" not in card:
        raise DataError(f"these data don't tell their mean picture, which a drawn one lacks; run mstdistill prepare "
                        f"{TASK.name} again with --mnist and --fsdd")  # fmt: skip
    scaled, _ = min_max((ink(picture, 28, 20) - np.asarray(card["mean_image"], np.float32).reshape(28, 28))[None])
    return scaled


def heard(sound: tuple[np.ndarray, int], card: Mapping[str, Any]) -> np.ndarray:
    """A recorded digit as the data's [1, 112, 112]: silence around it cut off, at the recordings' 8 kHz.

    Raises:
        DataError: silence.
    """
    samples, rate = sound
    wave = trimmed(resample(torch.from_numpy(samples), rate, RATE))
    scaled, _ = min_max(square_spectrogram(wave).numpy()[None])
    return scaled


TASK = Task(
    name="av-mnist",
    title="MNIST images with spoken digits (paper); needs MNIST and Free Spoken Digit files",
    modalities={"image": (1, 28, 28), "audio": (1, 112, 112)},
    forms={"image": Form("image"), "audio": Form("audio")},
    raw={"image": drawn, "audio": heard},
    num_classes=10,
    version=2,
    class_names=tuple(str(i) for i in range(10)),
    prepare=prepare,
    options={
        "mnist": Option("folder of MNIST's idx files, or with torchvision's MNIST/raw", example="downloads/mnist"),
        "fsdd": Option("folder of Free Spoken Digit recordings", example="downloads/fsdd"),
        "noise": Option("folder of ESC-50 clips", unset="no noise"),
        "train_speakers": Option("whom training images hear, in this order", tuple, TRAIN_SPEAKERS),
        "test_speakers": Option("whom test images hear", tuple, TEST_SPEAKERS),
        "dtype": Option("how features are stored", default="float16", choices=("float16", "float32")),
        "workers": WORKERS,
        "max_broken": max_broken("recordings", 0.0),
        "source": Option("folder with the authors' preprocessed avmnist", unset="from mnist and fsdd"),
    },
)
