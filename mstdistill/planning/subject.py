"""What a plan is about: a recipe's task, its instances and their shapes, from the data's card or without any data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.catalogue import backbones
from ..config import ModelSettings, Recipe
from ..data.given_logits import are_logits
from ..data.prepared.store import CARD, SMALL_COLUMN, read_card
from ..data.scale import Scale
from ..data.sources.opening import HUB
from ..data.sources.registry import folder_of
from ..data.task import SPLITS
from ..engine.progress import Screen
from ..errors import ConfigError
from ..material import Material, Sight

# What `prepare` makes of a publisher's whole set: instances in all, and how each modality is stored, with True where
# rows are scaled when they are read. From docs/data.md, "What is done to each" and "How fast, how large".
PUBLISHED: Mapping[str, tuple[int, Mapping[str, tuple[str, bool]]]] = {
    "av-digits": (1_797, {"image": ("float32", False), "audio": ("float32", False)}),
    "av-mnist": (70_000, {"image": ("float16", False), "audio": ("float16", False)}),
    "ravdess": (1_440, {"video": ("uint8", True), "audio": ("float32", False)}),
    "vggsound-50k": (50_000, {"visual": ("float16", True), "audio": ("float16", True)}),
    "crisismmd-v2": (16_058, {"image": ("float32", False), "text": ("float32", False)}),
    "nyu-depth-v2": (1_449, {"rgb": ("uint8", True), "depth": ("float32", True)}),
}


# `datasets` writes pieces of so many rows.
PIECE_ROWS = 1000


@dataclass(frozen=True)
class Columns:
    """A modality's rows: shape without the batch, stored type, and whether they are scaled when read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    scaled: bool = False

    @property
    def bytes(self) -> int:
        """Of a row, as stored."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class PlannedSplit:
    """Instances of which the shapes alone are known; they lie "on the device", where nobody checks their values.

    Args:
        label: shape of a label; real: values at random instead of memory as it comes (fake tensors have no values).
    """

    deterministic = True
    fingerprint = "planned"
    device = torch.device("cpu")

    def __init__(
        self, count: int, columns: Mapping[str, Columns], label: tuple[int, ...], num_classes: int, real: bool
    ) -> None:
        self.count, self.columns, self.label, self.num_classes, self.real = count, columns, label, num_classes, real
        self.scales = {name: _scale(kind) for name, kind in columns.items() if kind.dtype.is_floating_point
                       or kind.scaled}  # fmt: skip

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: np.ndarray, modalities: Any) -> tuple[dict[str, Tensor], Tensor]:
        """As `Split.fetch`."""
        inputs, label = self.pick(torch.from_numpy(np.asarray(index)), modalities)
        return {name: self.scales[name](x) if name in self.scales else x for name, x in inputs.items()}, label

    def pick(self, rows: Tensor, modalities: Any) -> tuple[dict[str, Tensor], Tensor]:
        """As `OnDevice.pick`."""
        inputs = {name: self._values((len(rows), *self.columns[name].shape), self.columns[name].dtype)
                  for name in modalities}  # fmt: skip
        shape = (len(rows), *self.label)
        if self.real:
            return inputs, torch.randint(2 if len(self.label) == 1 else self.num_classes, shape)
        return inputs, torch.empty(shape, dtype=torch.int64)

    def _values(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if not self.real:
            return torch.empty(shape, dtype=dtype)
        return torch.rand(shape).to(dtype) if dtype.is_floating_point else torch.randint(2, shape).to(dtype)


def _scale(kind: Columns) -> Scale:
    return Scale(torch.zeros(()), torch.ones(())) if kind.scaled else Scale()


class PlannedMaterial(Material):
    """Networks of the recipe's shapes with whatever weights: no file is read, nothing fetched but models' configs."""

    def twin(self, screen: Screen) -> nn.Module:
        """Another student, for the comparison without teachers."""
        return self._network(self.student, screen)

    def _network(self, sight: Sight, screen: Screen, frozen: bool = False) -> nn.Module:
        plain = {k: v for k, v in sight.settings.options.items() if k != "imagenet"}
        settings = ModelSettings(**{
            **{name: getattr(sight.settings, name) for name in ModelSettings.model_fields},
            "weights": None, "pretrained": False, "compile": False, "options": plain,
        })  # fmt: skip
        return super()._network(Sight(sight.name, settings, sight.modalities, sight.views), screen, False)


@dataclass(frozen=True)
class Subject:
    """A recipe's material, and how many instances of which shape it has.

    Attributes:
        counts: instances of train, validation and test.
        label: shape of a label, from the card; None: the student's logits say.
        source: where counts and shapes are from, for people.
        pieces: instances of the parts as prepared.
    """

    recipe: Recipe
    material: PlannedMaterial
    counts: Mapping[str, int]
    columns: Mapping[str, Columns]
    label: tuple[int, ...] | None
    source: str
    pieces: tuple[int, ...] = ()

    @property
    def held(self) -> int:
        """Bytes of the columns that a process puts together: those of several pieces on disk that are small."""
        sizes = [rows * kind.bytes for rows in self.pieces for kind in self.columns.values() if rows > PIECE_ROWS]
        return sum(size for size in sizes if size <= SMALL_COLUMN)


def subject_of(recipe: Recipe) -> Subject:
    """What a recipe's run would work on; logits that are given are a column more.

    Raises:
        ConfigError: unknown task, modalities or networks, or a task of which nothing is known without its data.
    """
    found = _subject_of(recipe, PlannedMaterial(recipe))
    given = {name: Columns((found.material.task.num_classes,), torch.float32) for sight in found.material.teachers
             for name in sight.names if are_logits(name)}  # fmt: skip
    return replace(found, columns={**found.columns, **given})


def _subject_of(recipe: Recipe, material: PlannedMaterial) -> Subject:
    if material.data is not None:
        views = {view.name: view for sight in [material.student, *material.teachers] for view in sight.views}
        columns = {name: Columns(tuple(view.column.shape), getattr(torch, view.column.dtype))
                   for name, view in views.items()}  # fmt: skip
        total = len(material.data.items)
        return Subject(recipe, material, _cut(total, recipe), columns, None, f"the data ({total:,} instances)")
    directory = recipe.data.dir
    folder = folder_of(material.task, None if directory and directory.startswith(HUB) else directory)
    if (folder / CARD).exists() and not (directory or "").startswith(HUB):
        return _from_card(recipe, material, read_card(folder), str(folder))
    return _from_tables(recipe, material)


def _from_card(recipe: Recipe, material: PlannedMaterial, card: Mapping[str, Any], folder: str) -> Subject:
    kinds = dict(card["modalities"])
    label = tuple(kinds.pop("label")["shape"])
    columns = {name: Columns(tuple(kind["shape"]), getattr(torch, kind["dtype"]), kind.get("scale") is not None)
               for name, kind in kinds.items() if name in material.task.modalities}  # fmt: skip
    rows = {name: int(facts["rows"]) for name, facts in card["splits"].items()}
    counts = _cut(sum(rows.values()), recipe) if set(rows) == {"all"} or recipe.data.limit else rows
    return Subject(recipe, material, counts, columns, label, f"the card of {folder}", tuple(rows.values()))


def _from_tables(recipe: Recipe, material: PlannedMaterial) -> Subject:
    task = material.task
    if task.name not in PUBLISHED:
        raise ConfigError(f"task {task.name!r}: its size isn't known without data; prepare them and set data.dir")
    total, stored = PUBLISHED[task.name]
    shapes = {name: tuple(n or 0 for n in shape) for name, shape in task.modalities.items()}
    # a modality of any size has that of the networks
    for sight in [material.student, *material.teachers]:
        if sight.settings.backbone in backbones():
            inputs = backbones()[sight.settings.backbone].inputs
            shapes |= {m: shape for m, shape in zip(sight.modalities, inputs, strict=False) if 0 in shapes[m]}
    unknown = [name for name, shape in shapes.items() if 0 in shape]
    if unknown:
        raise ConfigError(f"task {task.name!r}: the shape of {unknown[0]!r} isn't known without data; set data.dir")
    columns = {name: Columns(shapes[name], getattr(torch, dtype), scaled) for name, (dtype, scaled) in stored.items()}
    source = f"the published size ({total:,} instances; no prepared data found)"
    return Subject(recipe, material, _cut(total, recipe), columns, None, source, (total,))


def _cut(total: int, recipe: Recipe) -> dict[str, int]:
    """Instances of the splits: 60/20/20, which a publisher's own parts may differ from."""
    total = min(total, recipe.data.limit or total)
    first, second = total * 6 // 10, total * 8 // 10
    return dict(zip(SPLITS, (first, second - first, total - second), strict=True))
