"""The batches that stages read: of which split and views, how many instances at a time, in which order, how changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .config import OptimSettings, Recipe
from .data.augment.plan import Augmentation
from .data.feeding.batch import Batch
from .data.feeding.loader import Loader
from .data.feeding.pairs import Pairs
from .data.feeding.resident import ResidentSplit, resident_bytes
from .data.feeding.varying import Varying
from .data.split import Split
from .data.task import Task
from .engine.seeding import named_seed


class Feeds:
    """An experiment's loaders.

    Args:
        splits: by name; which split stands under a name is looked up anew for each loader.
        device: that trains; training data stay in a GPU's memory where they fit into `run.resident_gb`.

    Attributes:
        classes: [N] of the training instances, where these are drawn by them.
        augmentation: of training instances.
    """

    def __init__(self, recipe: Recipe, task: Task, splits: Mapping[str, Split], device: torch.device) -> None:
        self.recipe, self.task, self.splits, self.device = recipe, task, splits, device
        self.classes: np.ndarray | None = None
        self.augmentation: Augmentation | None = None
        self._resident: dict[tuple[str, ...], ResidentSplit] = {}
        self._kept: dict[tuple[object, ...], Loader] = {}

    def loader(
        self, split: str, modalities: Sequence[str], settings: OptimSettings | None = None, shuffle: bool = False,
        labelled: bool = False, varied: Sequence[str] | None = None,
    ) -> Loader:  # fmt: skip
        """Batches of a split.

        Args:
            settings: of the stage that trains on them: its batch size, accumulation and augmentation.
            shuffle: in this run's order of the epoch.
            labelled: of labelled instances alone, else of all.
            varied: the views that augmentation changes, for a stage that asks frozen networks; None: all.
        """
        share = 1.0 if labelled else self.recipe.data.labelled_share
        if settings is None:
            return self._loader(self.splits[split], split, modalities, None, shuffle, share)
        found = self._loader(self._near(split, modalities), split, modalities, settings, shuffle, share)
        found.vary = self.varying(varied)
        alpha = self.recipe.augment.mixup
        found.pairs = None if alpha is None else Pairs(alpha, named_seed(self.recipe.seed, "augment"))
        return found

    def first(self, view: Sequence[str], rows: int | None = None) -> Batch:
        """The first training instances, on the device: `rows` of them, or a batch."""
        return self.loader("train", view).first(rows).to(self.device)

    def varying(self, views: Sequence[str] | None) -> Varying | None:
        """What changes training batches; see `loader`."""
        if self.augmentation is None:
            return None
        settings = self.recipe.augment
        repeated = settings.views if views and settings.teachers == "views" else None
        return Varying(self.augmentation, views, repeated, self.task.multilabel)

    @property
    def changes(self) -> tuple[object, ...]:
        """What decides how an instance is changed, for fingerprints."""
        return self.recipe.seed, self.recipe.augment.model_dump_json()

    def _near(self, split: str, modalities: Sequence[str]) -> Split:
        """The split on the device that trains, if that is a GPU, the data stay the same and there is room."""
        data, budget = self.splits[split], self.recipe.run.resident_gb * 1e9
        if self.device.type == "cpu" or not data.deterministic or not budget:
            return data
        key = (split, data.fingerprint, *sorted(modalities))
        if key not in self._resident:
            loader = self._loader(data, split, modalities, None, False, None)
            if resident_bytes(loader) > budget:
                return data
            self._resident.clear()  # one stage trains at a time
            self._resident[key] = ResidentSplit(loader, self.device)
        return self._resident[key]

    def _loader(
        self, data: Split, split: str, modalities: Sequence[str], settings: OptimSettings | None, shuffle: bool,
        share: float | None,
    ) -> Loader:  # fmt: skip
        recipe = self.recipe
        batch_size = (settings.batch_size if settings else None) or recipe.batch_size
        workers = 0 if isinstance(data, ResidentSplit) else recipe.data.workers
        key = (split, data.fingerprint, *modalities, batch_size, shuffle, share)
        if settings is None and key in self._kept:
            return self._kept[key]
        loader = Loader(
            data,
            modalities,
            batch_size,
            shuffle=shuffle,
            seed=named_seed(recipe.seed, "order") % 2**32,
            accumulate=recipe.accumulate if settings else 1,
            workers=workers,
            # a GPU computes while the next batches are read; on a CPU that would take the cores from it
            threads=2 if self.device.type != "cpu" else 0,
            num_classes=self.task.num_classes,
            ignore_index=self.task.ignore_index,
            several=self.task.multilabel,
            classes=self.classes if split == "train" else None,
            labelled_share=share,
            name=f"{self.task.name} {split}",
        )
        if workers and settings is None:  # its processes are started once: every validation asks anew, a stage once
            self._kept[key] = loader
        return loader
