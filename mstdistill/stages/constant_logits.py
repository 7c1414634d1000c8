"""Logits of frozen networks for a stage: from a table computed once, or live where a table isn't possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import CacheSettings
from ..data.feeding.batch import Batch
from ..data.feeding.varying import Varying
from ..data.view import modality_of
from ..experiment import Experiment
from ..losses import mixed_logits
from ..teachers.cache import HALVES, LogitCache, fingerprint, table_bytes
from ..teachers.cache_shards import build_cache


@dataclass(frozen=True)
class LogitSource:
    """Where a stage gets constant logits.

    Attributes:
        look: from a batch on the device to logits without gradient: either (logits [B, M, C, ...], None), or a table
            of the whole split [N, M, C, ...] with the batch's rows [B] in it.
        modalities: what a batch must hold for it: nothing when they come from a table.
        about: one line for people.
        resident: whether they lie in the device's memory.
        choose: where they are live and a forward for chosen teachers was given: from a batch and the chosen ones [B, k]
            to their logits [B, k, C, ...].
    """

    look: Callable[[Batch], tuple[Tensor, Tensor | None]]
    modalities: tuple[str, ...]
    about: str
    resident: bool = False
    choose: Callable[[Batch, Tensor], Tensor] | None = None

    def gather(self, batch: Batch) -> Tensor:
        """Logits [B, M, C, ...] of the batch, in float32 or float64."""
        logits, rows = self.look(batch)
        logits = logits if rows is None else logits[rows]
        return logits.float() if logits.dtype in HALVES else logits


def constant_logits(
    experiment: Experiment,
    name: str,
    forward: Callable[[Batch], Tensor],
    modalities: Sequence[str],
    split: str,
    modules: Mapping[str, nn.Module],
    facts: Sequence[object],
    settings: CacheSettings,
    chosen: Callable[[Batch, Tensor], Tensor] | None = None,
    still: bool = False,
) -> LogitSource:
    """A table of `forward`'s logits over a split, or `forward` itself.

    Live where the data are random, where the table would not fit the budget, or where the recipe says so. Of augmented
    instances they are those of the data as they are, or as `augment.teachers` says.

    Args:
        name: of the table, under the run's cache folder.
        forward: from a batch on the device to logits [B, M, C, ...].
        chosen: as `forward`, for chosen teachers alone.
        modules, facts: what the table's fingerprint is made of, besides the data.
        still: of the data as they are, whatever `augment.teachers` says: of networks that won't stay as they are.
    """
    accelerator, data = experiment.accelerator, experiment.splits[split]
    teaching = experiment.teaching(modalities) if split == "train" and not still else "clean"

    @torch.no_grad()
    def live(batch: Batch, indices: Tensor | None = None) -> Tensor:
        batch = batch.unvaried() if teaching == "clean" else batch
        with accelerator.autocast():
            logits = forward(batch) if indices is None or chosen is None else chosen(batch, indices)
        return logits if logits.dtype == torch.float64 else logits.float()

    def mixing(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Logits of mixed instances, of networks that are asked about each alone."""

        def both(batch: Batch, *indices: Tensor) -> Tensor:
            if batch.partner is None or teaching == "same":
                return of(batch, *indices)
            own, other = of(batch.unvaried(), *indices), of(batch.partners(), *indices)
            return mixed_logits(own, other, batch, experiment.recipe.temperature, experiment.task.multilabel)

        return both

    def falls_back(why: str) -> LogitSource:
        asked = mixing(live)
        return LogitSource(lambda batch: (asked(batch), None), tuple(modalities), f"live: {why}",
                           choose=asked if chosen is not None else None)  # fmt: skip

    if settings.mode == "never":
        return falls_back("distill.cache.mode=never")
    if teaching == "same":
        return falls_back(f"of each view of {modality_of(experiment.target)} that the student sees")
    if not data.deterministic:
        return falls_back("the data change at each reading, so their logits aren't constants")
    loader = experiment.feeds.loader(split, modalities)
    row = live(loader.first(1).to(accelerator.device))
    views = experiment.recipe.augment.views if teaching == "views" else 1
    dtype, size = _choose(settings, len(data) * views, row)
    if size > settings.budget_gb * 1e9 and settings.mode == "auto":
        return falls_back(
            f"a table of {size / 1e9:.1f} GB in {dtype} exceeds distill.cache.budget_gb={settings.budget_gb:g}; a disk "
            "that holds it takes distill.cache.mode=always distill.cache.dtype=bfloat16"
        )

    several = experiment.task.multilabel
    facts = (name, data.fingerprint, dtype, experiment.recipe.precision, *facts, *["several"] * several)

    def table(name: str, logits: Callable[[Batch], Tensor], *facts: object) -> LogitCache:
        steps = -(-len(data) // (loader.batch_size * accelerator.num_processes))
        with experiment.screen.task(f"cache {name}", steps) as bar:
            return build_cache(
                experiment.folder / "cache" / name, fingerprint(facts, modules), logits, loader, row.shape[1:],
                accelerator.device, dtype, settings.resident_gb * 1e9, bar.advance, experiment.screen.say, several,
            )  # fmt: skip

    vary = experiment.feeds.varying((experiment.target,)) if teaching == "views" else None
    found = [table(name, live, *facts)] if vary is None else [
        table(f"{name}-view{view}", _of_view(live, vary, view), *facts, *experiment.feeds.changes, view)
        for view in range(views)
    ]  # fmt: skip
    about = f"table of {list(found[0].shape)} {dtype}, {size / 1e6:.1f} MB"
    about = about if vary is None else f"of {views} views, each a {about} for all"
    asked = mixing(lambda batch: found[0].gather(batch.index))

    def look(batch: Batch) -> tuple[Tensor, Tensor | None]:
        return found[batch.view % len(found)].look(batch.index) if batch.partner is None else (asked(batch), None)

    return LogitSource(look, (), about, found[0].resident)


def _of_view(logits: Callable[[Batch], Tensor], vary: Varying, view: int) -> Callable[[Batch], Tensor]:
    return lambda batch: logits(vary(batch, view))


def _choose(settings: CacheSettings, count: int, row: Tensor) -> tuple[str, int]:
    """Type and size of the table: the logits' own type where it fits the budget, else float16."""
    if settings.dtype != "auto":
        return settings.dtype, table_bytes(count, row, settings.dtype)
    own = "float64" if row.dtype == torch.float64 else "float32"
    for dtype in (own, "float16"):
        size = table_bytes(count, row, dtype)
        if size <= settings.budget_gb * 1e9:
            break
    return dtype, size
