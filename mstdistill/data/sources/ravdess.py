"""RAVDESS speech from its publisher's files: acted emotions as faces (mp4) and voice (wav).

Zenodo's archives unpack to `Actor_01/01-01-03-01-01-01-01.mp4` (sound and picture) and `Actor_01/03-01-...wav`
(sound); the name's fields are modality, channel, emotion, intensity, statement, repetition, actor. A clip is a pair of
such files of the speech channel. Data protocol: 3.6 s of sound at 22,050 Hz as 15 MFCCs in 156 frames; 15 face crops of
224 x 224. Or, from the paper's authors, their preprocessed arrays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, DataError
from ..decode import dsp
from ..decode.faces import Faces
from ..decode.sound import read_mono
from ..decode.spectra import fit_length, mfcc, min_max, resample, resample_kaiser
from ..decode.video import count_frames, evenly_spaced, read_frames
from ..options import WORKERS, Option, max_broken
from ..options import released as released_option
from ..prepared.build import build
from ..prepared.plan import SOURCES, Column, Item, Plan, Watcher
from ..task import Form, Task
from .files import checksums, source_folder
from .released.ravdess import arrays_below, plan_of

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
RATE, SECONDS, COEFFICIENTS, MFCC_FRAMES = 22050, 3.6, 15, 156
FRAMES, SIDE, WINDOW = 15, 224, 108  # WINDOW: 3.6 s at 30 frames a second
_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-([0-9]{2})")


def prepare(
    folder: Path,
    screen: Watcher,
    source: str | None = None,
    faces: str = "auto",
    workers: int | None = None,
    max_broken: float = 0.02,
    released: bool = False,
) -> Path:
    """Build RAVDESS in `folder`.

    Args:
        source: folder with the unpacked speech archives of video and of audio, anywhere below it; or the authors'
            `RAVDESS_preprocessed_npy`, or a folder that holds it.
        faces: how faces are cropped; see `Faces`.
        released: frames from the first on and the authors' resampling, as `ReadClip` says; their arrays are so anyway.
        workers, max_broken: see `build`.

    Raises:
        DataError: no such files, or too many that can't be read.
        ConfigError: `faces` for arrays that hold faces already.
    """
    root = source_folder(TASK.name, source)
    arrays = _arrays(root, faces)
    if arrays is not None:
        screen.say(f"{TASK.name}: reads the authors' preprocessed arrays in {arrays}")
        return build(folder, plan_of(arrays, TASK), screen, workers, max_broken)
    found = Faces(faces)
    if found.how == "centre" and faces == "auto":
        screen.say("faces: OpenCV is not installed, so each frame's middle square is taken; "
                   "pip install 'mstdistill[faces]' finds faces")  # fmt: skip
    items, alone = _pairs(root)
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={
            "video": Column((FRAMES, 3, SIDE, SIDE), "uint8", scale="channel", axis=1),
            "audio": Column((COEFFICIENTS, MFCC_FRAMES), "float32"),
        },
        items=items,
        read=ReadClip(root, found, released),
        settings={"faces": found.how, **({"released": True} if released else {})},
        order="by actor, then by name",
        card={
            "title": TASK.title,
            "classes": list(EMOTIONS),
            "faces": {"opencv": "OpenCV's frontal-face cascade", "centre": "the middle square of each frame"}[
                found.how
            ],
            "without_partner": alone,
            **({"released": "frames from the first on, the authors' resampling"} if released else {}),
            "sources": {"publisher": "RAVDESS, Zenodo record 1188976 (CC BY-NC-SA 4.0)"},
        },
    )
    if alone:
        screen.say(f"{len(alone)} files have no partner (video 01-..., sound 03-...) and are left out: card.json lists "
                   "them")  # fmt: skip
    dsp.torchaudio()  # should it be broken, that is said here, not by each reader
    return build(folder, plan, screen, workers, max_broken)


def _arrays(root: Path, faces: str) -> Path | None:
    """The authors' arrays below a folder, if it is they that are meant."""
    arrays = arrays_below(root)
    if arrays is None:
        return None
    if arrays != root and any(_NAME.fullmatch(path.stem) for path in root.rglob("01-01-*.mp4")):
        raise DataError(f"{root} holds clips and the authors' preprocessed arrays; name {arrays} for these, or a "
                        "folder without it for the clips")  # fmt: skip
    if faces != "auto":
        raise ConfigError(f"--faces {faces}: the authors' arrays in {arrays} hold faces already; leave it out")
    return arrays


def _pairs(root: Path) -> tuple[list[Item], list[str]]:
    """Clips with both files, by actor, then by name, and the files without a partner."""
    videos: dict[str, Path] = {}
    sounds: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        fields = _NAME.fullmatch(path.stem)
        if fields is None or fields[2] != "01":  # 02 is song
            continue
        kept = {("01", ".mp4"): videos, ("03", ".wav"): sounds}.get((fields[1], path.suffix.lower()))
        clip = path.stem[3:]
        if kept is None:
            continue
        if clip in kept:
            raise DataError(f"{kept[clip]} and {path} are the same clip; keep one of them")
        kept[clip] = path
    both = sorted(videos.keys() & sounds.keys(), key=lambda clip: (clip[-2:], clip))
    if not both:
        raise DataError(
            f"{root}: no pairs of RAVDESS speech files (Actor_*/01-01-*.mp4 with 03-01-*.wav) below it; "
            f"found {len(videos)} videos and {len(sounds)} sounds; unpack Video_Speech_Actor_*.zip and "
            "Audio_Speech_Actors_01-24.zip there"
        )
    items = [Item(clip, (videos[clip], sounds[clip]), int(clip[3:5]) - 1) for clip in both]
    alone = [str(path.relative_to(root)) for kept in (videos, sounds) for c, path in kept.items() if c not in both]
    return items, sorted(alone)


@dataclass(frozen=True)
class ReadClip:
    """From a pair of files to `video` [15, 3, 224, 224] uint8 and `audio` [15, 156] float32 in [0, 1].

    Attributes:
        released: as the paper's authors do it: the 3.6 s of frames begin with the first one, and sound is resampled as
            `resample_kaiser` does.
    """

    root: Path
    faces: Faces
    released: bool = False

    def __call__(self, source: tuple[Path, Path]) -> dict[str, Any]:
        video, sound = source
        return {"video": self.see(video), "audio": hear(sound, self.released), SOURCES: checksums(source, self.root)}

    def see(self, path: Path) -> np.ndarray:
        """Face crops of 15 frames spread evenly over 3.6 s; missing ones are black."""
        begin = 0 if self.released else max(0, (count_frames(path) - WINDOW) // 2)
        frames = read_frames(path, evenly_spaced(FRAMES, WINDOW, begin))
        out = np.zeros((FRAMES, 3, SIDE, SIDE), dtype=np.uint8)
        for i, crop in enumerate(self.faces.crop(frames, SIDE)):
            out[i] = crop.transpose(2, 0, 1)
        return out


def hear(path: Path, released: bool = False) -> np.ndarray:
    """MFCCs [15, 156] of 3.6 s of sound, each clip scaled to [0, 1]."""
    samples, rate = read_mono(path)
    resampled = (resample_kaiser if released else resample)(torch.from_numpy(samples), rate, RATE)
    wave = fit_length(resampled, int(SECONDS * RATE))
    scaled, _ = min_max(mfcc(wave, RATE, COEFFICIENTS).numpy()[None])
    values: np.ndarray = scaled[0]
    return values


TASK = Task(
    name="ravdess",
    title="acted emotions: faces with speech (paper); needs RAVDESS's speech archives",
    modalities={"video": (FRAMES, 3, SIDE, SIDE), "audio": (COEFFICIENTS, MFCC_FRAMES)},
    forms={"video": Form("image"), "audio": Form("audio")},
    num_classes=8,
    version=2,
    class_names=EMOTIONS,
    prepare=prepare,
    options={
        "source": Option(
            "folder with the unpacked speech archives of video and audio, or with the authors' "
            "RAVDESS_preprocessed_npy",
            example="downloads/ravdess",
        ),
        "faces": Option("how faces are cropped", default="auto", choices=("auto", "opencv", "centre")),
        "workers": WORKERS,
        "max_broken": max_broken("clips"),
        "released": released_option("frames from the first on, sound resampled with a long Kaiser window"),
    },
)
