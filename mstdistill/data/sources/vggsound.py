"""VGGSound-50k, the AVEL benchmark's subset of VGGSound: clips of ten seconds, a class each of 141.

Read from the benchmark's list (`vggsound-avel50k.csv`: category, video_id, ..., split) and either its authors'
extracted features (a file a clip for each modality) or VGGSound's clips. Data protocol: a feature a second: visual maps
[10, 7, 7, 512] (VGG-19's last pooling) and audio embeddings [10, 128] (VGGish); classes in their order of appearance;
each modality scaled by its least and greatest value.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ..decode.encoders import device, image_maps, load_encoder, load_vggish
from ..decode.features import read_features
from ..decode.picture import normalised, resize
from ..decode.sound import read_sound
from ..decode.spectra import vggish_patches
from ..decode.video import read_at
from ..options import WORKERS, Option, max_broken
from ..prepared.build import build
from ..prepared.plan import SOURCES, Column, Item, Plan, Watcher
from ..task import Task
from .files import checksums, sha256, source_folder

SECONDS, SIDE = 10, 224
VISUAL, AUDIO = (SECONDS, 7, 7, 512), (SECONDS, 128)
CLASSES = 141
IMAGE_ENCODER, FRAMES = "timm/vgg19.tv_in1k", 16
FEATURE_SUFFIXES = (".zip", ".npy", ".npz", ".pkl", ".h5")
CLIP_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
PARTS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


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
        source: folder with the extracted features (`*visual*` or `*video*` and `*audio*` folders of a file a clip), or
            with VGGSound's clips anywhere below it; and the list.
        clips: the list, a csv; default: the one csv below `source`.
        image_encoder: for clips: hub name or folder of a network whose last map is [512, 7, 7].
        audio_encoder: for clips: a file of VGGish's weights.
        frames: for clips: pictures a second, their maps averaged.
        dtype: how features are stored: float16 or float32.

    Raises:
        DataError: missing list, columns, clips or features; too many that can't be read.
        ConfigError: an encoder that can't be loaded.
    """
    root = source_folder(TASK.name, source, "--source DIR [--clips FILE.csv]")
    table = _find_list(root, clips)
    rows = _read_list(table)
    extracted = _feature_folders(root)
    files = _feature_files(extracted) if extracted else _clips(root)
    items, absent = _items(rows, files, table)
    if absent:
        screen.say(f"{len(absent):,} of {len(rows):,} listed clips have no file and are left out: card.json lists them")
    settings: dict[str, Any] = {"from": "features", "dtype": dtype}
    encode = None
    if not extracted:
        settings |= {"from": "clips", "image_encoder": image_encoder, "audio_encoder": audio_encoder, "frames": frames}
        encode = Encode(image_encoder, audio_encoder)
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={"visual": Column(VISUAL, dtype, scale="global"), "audio": Column(AUDIO, dtype, scale="global")},
        items=items,
        read=ReadFeatures(root) if extracted else ReadClip(root, int(frames)),
        encode=encode,
        encode_rows=2,
        read_bytes=0 if extracted else SECONDS * int(frames) * SIDE * SIDE * 3,
        settings=settings,
        card={
            "title": TASK.title,
            "classes": [*dict.fromkeys(category for category, _, _ in rows)],
            "without_file": absent,
            "sources": {"publisher": "VGGSound (CC BY 4.0), AVEL list", "sha256": {table.name: sha256(table)}},
        },
    )
    return build(folder, plan, screen, workers, max_broken)


def _find_list(root: Path, given: str | None) -> Path:
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise DataError(f"--clips {given}: no such file")
        return path
    found = sorted(root.rglob("*.csv"))
    if len(found) != 1:
        raise DataError(f"{root}: {len(found)} csv files below it; name the list with --clips vggsound-avel50k.csv")
    return found[0]


def _read_list(table: Path) -> list[tuple[str, str, int]]:
    """(category, clip, publisher's part) of each clip, in the list's order."""
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for column in ("category", "video_id"):
            if column not in (reader.fieldnames or ()):
                raise DataError(f"{table}: no column {column!r} (found: {', '.join(reader.fieldnames or ())})")
        rows: dict[str, tuple[str, str, int]] = {}
        for row in reader:
            clip, part = row["video_id"], PARTS.get((row.get("split") or "").lower(), -1)
            if clip in rows and rows[clip][0] != row["category"]:
                raise DataError(f"{table}: clip {clip} is listed twice, as {rows[clip][0]!r} and {row['category']!r}")
            rows.setdefault(clip, (row["category"], clip, part))
    classes = {category for category, _, _ in rows.values()}
    if len(classes) > CLASSES:
        raise DataError(f"{table}: {len(classes)} categories, where the benchmark has {CLASSES}: another list?")
    return [*rows.values()]


def _feature_folders(root: Path) -> dict[str, Path] | None:
    """The folders of extracted features, if that is what lies there."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_dir()):
        name = path.name.lower()
        kind = "audio" if "audio" in name else "visual" if "visual" in name or "video" in name else None
        if kind and any(file.suffix in FEATURE_SUFFIXES for file in path.iterdir() if file.is_file()):
            found[kind] = path
        elif name == "zip" and found.keys() != {"audio", "visual"}:  # archives unpack to audio/zip/, video/zip/
            parent = path.parent.name.lower()
            found["audio" if "audio" in parent else "visual"] = path
    if found and found.keys() != {"audio", "visual"}:
        raise DataError(
            f"{root}: extracted features of {', '.join(found)} alone; folders of both, named *audio* and *visual*, are "
            "wanted"
        )
    return found or None


def _feature_files(folders: dict[str, Path]) -> dict[str, Sequence[Path]]:
    audio, visual = (
        {path.stem: path for path in sorted(folders[kind].iterdir()) if path.suffix in FEATURE_SUFFIXES}
        for kind in ("audio", "visual")
    )
    return {clip: (visual[clip], audio[clip]) for clip in audio.keys() & visual.keys()}


def _clips(root: Path) -> dict[str, Sequence[Path]]:
    return {path.stem: (path,) for path in sorted(root.rglob("*")) if path.suffix.lower() in CLIP_SUFFIXES}


def _items(
    rows: Sequence[tuple[str, str, int]], files: dict[str, Sequence[Path]], table: Path
) -> tuple[list[Item], list[str]]:
    """Items of the listed clips that are there, and the names of those that aren't."""
    classes = {category: i for i, category in enumerate(dict.fromkeys(category for category, _, _ in rows))}
    by_id = {stem[:11]: stem for stem in files}  # YouTube's ids have eleven letters; start times may follow
    items, absent = [], []
    for category, clip, part in rows:
        stem = clip if clip in files else by_id.get(clip[:11], "")
        if stem:
            items.append(Item(clip, tuple(files[stem]), classes[category], part))
        else:
            absent.append(clip)
    if not items:
        raise DataError(f"none of the {len(rows):,} clips of {table.name} has a file; name files after video_id")
    return items, absent


@dataclass(frozen=True)
class ReadFeatures:
    """From a clip's two feature files to `visual` [10, 7, 7, 512] and `audio` [10, 128]."""

    root: Path

    def __call__(self, source: Sequence[Path]) -> dict[str, Any]:
        visual, audio = (read_features(path) for path in source)
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
    num_classes=CLASSES,
    prepare=prepare,
    options={
        "source": Option(
            "folder with extracted features (the list's or the paper's authors'), or with VGGSound's clips",
            example="downloads/vggsound",
        ),
        "clips": Option("the list, vggsound-avel50k.csv", unset="the one below --source"),
        "image_encoder": Option("for clips: hub name or folder", default=IMAGE_ENCODER),
        "audio_encoder": Option("for clips: a file of VGGish's weights"),
        "frames": Option("for clips: pictures a second, their maps averaged", int, FRAMES, least=1),
        "dtype": Option("how features are stored", default="float16", choices=("float16", "float32")),
        "workers": WORKERS,
        "max_broken": max_broken("clips"),
    },
)
