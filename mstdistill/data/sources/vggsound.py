"""VGGSound-50k, the AVEL benchmark's subset of VGGSound: clips of ten seconds, a class each of 141.

Read from the benchmark's list and either its authors' extracted features or VGGSound's clips, or from the features of
the paper's authors; `vggsound_files` says what each looks like. Data protocol: a feature a second: visual maps
[10, 7, 7, 512] (VGG-19's last pooling) and audio embeddings [10, 128] (VGGish); classes in their order of appearance,
or as the paper's authors number them; each modality scaled by its least and greatest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ..decode import dsp
from ..decode.encoders import device, image_maps, load_encoder, load_vggish
from ..decode.features import read_features
from ..decode.picture import normalised, resize
from ..decode.sound import read_sound
from ..decode.spectra import vggish_patches
from ..decode.video import read_at
from ..options import WORKERS, Option, max_broken
from ..prepared.build import build
from ..prepared.plan import SOURCES, Column, Plan, Watcher
from ..task import Form, Task
from .files import checksums, sha256, source_folder
from .vggsound_files import CLASSES, find

SECONDS, SIDE = 10, 224
VISUAL, AUDIO = (SECONDS, 7, 7, 512), (SECONDS, 128)
IMAGE_ENCODER, FRAMES = "timm/vgg19.tv_in1k", 16


def prepare(
    folder: Path,
    screen: Watcher,
    source: str | None = None,
    clips: str | None = None,
    image_encoder: str = IMAGE_ENCODER,
    audio_encoder: str | None = None,
    frames: int = FRAMES,
    dtype: str = "float16",
    workers: int | None = None,
    max_broken: float = 0.02,
) -> Path:
    """Build VGGSound-50k in `folder`.

    Args:
        source: folder with the benchmark's list and its extracted features (folders of a file a clip) or VGGSound's
            clips, anywhere below it; or with the features and the metadata of the paper's authors.
        clips: the list, a csv; default: the one below `source`.
        image_encoder: for clips: hub name or folder of a network whose last map is [512, 7, 7].
        audio_encoder: for clips: a file of VGGish's weights.
        frames: for clips: pictures a second, their maps averaged.
        dtype: how features are stored: float16 or float32.

    Raises:
        DataError: missing list, columns, clips or features; too many that can't be read.
        ConfigError: an encoder that can't be loaded.
    """
    root = source_folder(TASK.name, source, "--source DIR [--clips FILE.csv]")
    found = find(root, clips)
    if found.absent:
        listed = len(found.items) + len(found.absent)
        screen.say(
            f"{len(found.absent):,} of {listed:,} listed clips have no file and are left out: card.json lists them"
        )
    settings: dict[str, Any] = {"from": found.kind, "dtype": dtype}
    encode = None
    if found.kind == "clips":
        settings |= {"image_encoder": image_encoder, "audio_encoder": audio_encoder, "frames": frames}
        encode = Encode(image_encoder, audio_encoder)
    scale = None if found.kind == "scaled features" else "global"
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={"visual": Column(VISUAL, dtype, scale), "audio": Column(AUDIO, dtype, scale)},
        items=found.items,
        read=ReadFeatures(root) if encode is None else ReadClip(root, frames),
        encode=encode,
        encode_rows=2,
        read_bytes=0 if encode is None else SECONDS * frames * SIDE * SIDE * 3,
        settings=settings,
        card={
            "title": TASK.title,
            **({"classes": found.classes} if found.classes else {}),
            **({"note": found.note} if found.note else {}),
            "without_file": found.absent,
            **({"audio_rows": "of 9 the last is repeated, of 11 the last is left out"} if encode is None else {}),
            "sources": {
                "publisher": "VGGSound (CC BY 4.0)",
                "sha256": {path.name: sha256(path) for path in found.lists},
            },
        },
    )
    if encode is not None:
        dsp.torchaudio()  # should it be broken, that is said here, not by each reader
    return build(folder, plan, screen, workers, max_broken)


@dataclass(frozen=True)
class ReadFeatures:
    """From a clip's two feature files to `visual` [10, 7, 7, 512] and `audio` [10, 128]; of 9 rows of audio the last is
    repeated, the eleventh is left out."""

    root: Path

    def __call__(self, source: Sequence[Path]) -> dict[str, Any]:
        visual, audio = (read_features(path) for path in source)
        if audio.ndim == 2 and len(audio) == SECONDS - 1:  # a sound that ends early, or late
            audio = np.concatenate([audio, audio[-1:]])
        elif audio.ndim == 2 and len(audio) == SECONDS + 1:
            audio = audio[:SECONDS]
        return {"visual": visual, "audio": audio, SOURCES: checksums(source, self.root)}


@dataclass(frozen=True)
class ReadClip:
    """From a clip to pictures [10 * frames, 3, 224, 224] and log-mel patches [10, 96, 64], float32."""

    root: Path
    frames: int

    def __call__(self, source: Sequence[Path]) -> dict[str, Any]:
        (path,) = source
        times = [(i + 0.5) / self.frames for i in range(SECONDS * self.frames)]
        pictures = np.stack([resize(frame, (SIDE, SIDE)) for frame in read_at(path, times)])
        sound = torch.from_numpy(read_sound(path, 16000)[0])
        return {"pictures": pictures, "patches": vggish_patches(sound, SECONDS).numpy(),
                SOURCES: checksums(source, self.root)}  # fmt: skip


class Encode:
    """Pictures and patches to features; the encoders are loaded when first used."""

    def __init__(self, image: str, audio: str | None) -> None:
        if audio is None:
            raise DataError(
                "clips need --audio-encoder: a file of VGGish's weights (torchvggish's vggish-10086976.pth)"
            )
        self.names = (image, audio)
        self.models: tuple[Any, Any] | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.models is None:
            self.models = (load_encoder(self.names[0], "--image-encoder"), load_vggish(self.names[1]))
        return [self._encode(row, *self.models) for row in rows]

    def _encode(self, row: dict[str, Any], see: Any, hear: Any) -> dict[str, Any]:
        maps = image_maps(see, normalised(row["pictures"]))
        visual = maps.view(SECONDS, -1, *maps.shape[1:]).mean(dim=1).permute(0, 2, 3, 1)
        with torch.no_grad():
            audio = hear(torch.from_numpy(row["patches"]).to(device())).float().cpu()
        return {"visual": visual.numpy(), "audio": audio.numpy(), SOURCES: row[SOURCES]}


TASK = Task(
    name="vggsound-50k",
    title="sounding clips, 141 classes, features a second (paper); needs VGGSound and the AVEL list",
    modalities={"visual": VISUAL, "audio": AUDIO},
    forms={"visual": Form("array"), "audio": Form("array")},
    num_classes=CLASSES,
    prepare=prepare,
    version=2,  # sound is the mean of its channels
    options={
        "source": Option(
            "folder with extracted features (the list's or the paper's authors'), or with VGGSound's clips",
            example="downloads/vggsound",
        ),
        "clips": Option(
            "the list, vggsound-avel50k.csv; beside the paper's authors' features it names classes",
            unset="the one below --source",
        ),
        "image_encoder": Option("for clips: hub name or folder", default=IMAGE_ENCODER),
        "audio_encoder": Option("for clips: a file of VGGish's weights"),
        "frames": Option("for clips: pictures a second, their maps averaged", int, FRAMES, least=1),
        "dtype": Option("how features are stored", default="float16", choices=("float16", "float32")),
        "workers": WORKERS,
        "max_broken": max_broken("clips"),
    },
)
