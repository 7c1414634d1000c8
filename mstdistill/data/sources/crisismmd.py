"""CrisisMMD v2 from its publisher's files: tweets of disasters with their pictures.

`crisismmd_datasplit_all/task_humanitarian_text_img_{train,dev,test}.tsv` name the tweets and, below the archive's root,
their pictures (`data_image/...`). Data protocol: all parts of the humanitarian task, the first row of each tweet id;
the text normalised as BERTweet's, its pooled output (768); the picture's pooled ResNet-50 features (2048). Features are
not scaled. Or, from the paper's authors, their features.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ..decode.encoders import load_encoder, load_tokenizer, pooled_images, pooled_texts
from ..decode.picture import normalised, read_rgb
from ..decode.tweet import normalise_tweet
from ..options import WORKERS, Option, max_broken
from ..prepared.build import build
from ..prepared.plan import SOURCES, Column, Item, Plan, Watcher
from ..task import Form, Task
from .files import checksums, sha256, source_folder
from .released.crisismmd import NAME, file_below, plan_of

CLASSES = (
    "not_humanitarian", "affected_individuals", "infrastructure_and_utility_damage", "injured_or_dead_people",
    "missing_or_found_people", "rescue_volunteering_or_donation_effort", "vehicle_damage", "other_relevant_information",
)  # fmt: skip
PARTS = ("train", "dev", "test")
ORDER = ("dev", "test", "train")  # in which the paper's authors merge them
COLUMNS = ("tweet_id", "tweet_text", "image", "label")
TEXT_ENCODER, IMAGE_ENCODER = "vinai/bertweet-base", "timm/resnet50.tv_in1k"
IMAGE, TEXT, SIDE, MAX_TOKENS = 2048, 768, 224, 128


def prepare(
    folder: Path,
    screen: Watcher,
    source: str | None = None,
    text_encoder: str = TEXT_ENCODER,
    image_encoder: str = IMAGE_ENCODER,
    workers: int | None = None,
    max_broken: float = 0.02,
) -> Path:
    """Build CrisisMMD v2 in `folder`.

    Args:
        source: the unpacked archive (with data_image/ and the tsv files, anywhere below it); or the authors'
            `CMMD_data.pth`, or a folder that holds it.
        text_encoder, image_encoder: hub names or local folders; pooled outputs of 768 and 2048.

    Raises:
        DataError: missing files or columns, labels outside the list, too many unreadable pictures.
        ConfigError: an encoder that can't be loaded, or one for features that are encoded already.
    """
    root = source_folder(TASK.name, source)
    features = _features(root, {"text-encoder": text_encoder != TEXT_ENCODER,
                                "image-encoder": image_encoder != IMAGE_ENCODER})  # fmt: skip
    if features is not None:
        screen.say(f"{TASK.name}: reads the authors' features in {features}")
        return build(folder, plan_of(features, TASK), screen, workers, max_broken)
    files = _tables(root)
    items, repeated = _tweets(files)
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={"image": Column((IMAGE,), "float32"), "text": Column((TEXT,), "float32")},
        items=items,
        read=ReadTweet(root),
        encode=Encode(text_encoder, image_encoder),
        encode_rows=32,
        settings={"text_encoder": text_encoder, "image_encoder": image_encoder},
        order=", ".join(ORDER),
        card={
            "title": TASK.title,
            "classes": list(CLASSES),
            "repeated_tweets_left_out": repeated,
            "sources": {
                "publisher": "CrisisMMD v2.0 (CC BY-NC-SA 4.0)",
                "sha256": {path.name: sha256(path) for path in files.values()},
            },
        },
    )
    return build(folder, plan, screen, workers, max_broken)


def _features(root: Path, options: dict[str, bool]) -> Path | None:
    """The authors' file, if it is it that is meant; `options` of the publisher's files: whether they were given."""
    found = file_below(root)
    if found is None:
        return None
    if found != root and (table := next(root.rglob(_table("*")), None)):
        raise DataError(f"{root} holds {table.name} and the authors' {NAME}; name {found} for its features, or "
                        "a folder without it for the tables")  # fmt: skip
    given = [f"--{name}" for name, was in options.items() if was]
    if given:
        raise ConfigError(f"{given[0]}: the features in {found} are encoded already; leave it out")
    return found


def _table(part: str) -> str:
    return f"task_humanitarian_text_img_{part}.tsv"


def _tables(root: Path) -> dict[str, Path]:
    found = {}
    for part in PARTS:
        name = _table(part)
        paths = sorted(root.rglob(name))
        if not paths:
            raise DataError(f"{root}: no {name} below it; unpack crisismmd_datasplit_all.zip there, or name "
                            f"the authors' {NAME}")  # fmt: skip
        if len(paths) > 1:
            raise DataError(f"{paths[0]} and {paths[1]}: the same table twice; keep one of them")
        found[part] = paths[0]
    return found


def _tweets(files: dict[str, Path]) -> tuple[list[Item], int]:
    """One item a tweet id, in the order `ORDER` of the tables, and how many further rows of known ids were left out."""
    items: dict[str, Item] = {}
    rows = 0
    for name in ORDER:
        path, part = files[name], PARTS.index(name)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r} (found: {', '.join(reader.fieldnames or ())})")
            for number, row in enumerate(reader, start=2):
                if row["label"] not in CLASSES:
                    raise DataError(f"{path}, line {number}: label {row['label']!r} is not one of the eight classes")
                rows += 1
                if row["tweet_id"] not in items:
                    source = (row["tweet_text"] or "", row["image"])
                    items[row["tweet_id"]] = Item(row["tweet_id"], source, CLASSES.index(row["label"]), part)
    return list(items.values()), rows - len(items)


@dataclass(frozen=True)
class ReadTweet:
    """From a tweet's text and picture to normalised text and pixels [3, 224, 224] float32."""

    root: Path

    def __call__(self, source: tuple[str, str]) -> dict[str, Any]:
        text, image = source
        words = normalise_tweet(text)
        if not words:
            raise DataError(f"empty text: {text[:60]!r}")
        path = _inside(self.root, image)
        picture = read_rgb(path).resize((SIDE, SIDE), 2)  # 2: bilinear
        return {"text": words, "image": normalised(np.asarray(picture)), SOURCES: checksums([path], self.root)}


def _inside(root: Path, image: str) -> Path:
    """The picture's file; the archive may have been unpacked a folder or two deeper."""
    for base in (root, *(path.parent for path in _image_folders(root))):
        path = base / image
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    raise DataError(f"{root / image} is missing")


_folders: dict[Path, Sequence[Path]] = {}


def _image_folders(root: Path) -> Sequence[Path]:
    if root not in _folders:
        _folders[root] = sorted(p for depth in ("*", "*/*") for p in root.glob(f"{depth}/data_image") if p.is_dir())
    return _folders[root]


class Encode:
    """Rows as read to pooled features; the encoders are loaded when first used."""

    def __init__(self, text: str, image: str) -> None:
        self.names = (text, image)
        self.models: tuple[Any, Any, Any] | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.models is None:
            text, image = self.names
            self.models = (load_encoder(text, "--text-encoder"), load_tokenizer(text, "--text-encoder"),
                           load_encoder(image, "--image-encoder"))  # fmt: skip
        words, tokenizer, pictures = self.models
        if not rows:
            return []
        texts = pooled_texts(words, tokenizer, [row["text"] for row in rows], MAX_TOKENS)
        images = pooled_images(pictures, np.stack([row["image"] for row in rows]))
        return [{**row, "text": t, "image": i} for row, t, i in zip(rows, texts, images, strict=True)]


TASK = Task(
    name="crisismmd-v2",
    title="tweets of disasters with pictures, humanitarian classes (paper); needs CrisisMMD v2",
    modalities={"image": (IMAGE,), "text": (TEXT,)},
    forms={"image": Form("array"), "text": Form("array")},
    num_classes=8,
    version=3,  # emoji in two pieces, contractions before links
    class_names=CLASSES,
    prepare=prepare,
    options={
        "source": Option(
            "folder of the unpacked archives (data_image/ and crisismmd_datasplit_all/), or the authors' CMMD_data.pth",
            example="downloads/crisismmd",
        ),
        "text_encoder": Option("hub name or folder", default=TEXT_ENCODER),
        "image_encoder": Option("hub name or folder; the default has torchvision's weights", default=IMAGE_ENCODER),
        "workers": WORKERS,
        "max_broken": max_broken("tweets"),
    },
)
