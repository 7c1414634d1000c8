"""How a run's router and specialised teachers behave on a split's first instances: shares, agreement, masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..experiment import Experiment
from ..informed_router import probabilities, router_for
from ..kernels.constants import LOWEST
from ..stages.unmasked import each
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call, hooked
from ..weights import part

# Instances that are looked at.
LOOKED_AT = 2000


@torch.no_grad()
def routed(experiment: Experiment, student: nn.Module, ensemble: Ensemble, split: str) -> dict[str, Any]:
    """The router's shares, in all, by class, and how even they are; asks the student, and the teachers where the router
    reads them."""
    state = experiment.result("distill").state  # type: ignore[union-attr]
    reads, teachers, members = experiment.recipe.routing.reads, ensemble.teachers, len(ensemble.members)
    router = router_for(reads, experiment.dense, experiment.task.num_classes, len(teachers), members)
    router.load_state_dict(part(state, "router"))
    device, view = experiment.accelerator.device, (experiment.target,)
    views = sorted({experiment.target, *ensemble.modalities}) if reads == "teachers" else view
    router.to(device).eval()
    student.eval()
    shares, labels = [], []
    for batch in experiment.feeds.loader(split, views).rows(0, min(LOOKED_AT, len(experiment.splits[split]))):
        batch = batch.to(device)
        logits = call(student, batch.inputs, view).to(next(router.parameters()).dtype)
        if reads == "teachers":
            said = each(teachers, batch.inputs)
            scores = router(logits, probabilities(said, ensemble.see(batch.present), experiment.task.multilabel))
            seen = ensemble.seen(batch.present)
            scores = scores if seen is None else scores.masked_fill(~seen, LOWEST)
        else:
            scores = router(logits)
        shares.append(scores.softmax(dim=1).cpu())
        labels.append(batch.label.cpu() if batch.label.dim() < 3 else batch.label.flatten(1).mode(dim=1).values.cpu())
    p, label = torch.cat(shares), torch.cat(labels)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(dim=1) / math.log(max(p.shape[1], 2))
    per_class = {
        str(c): p[has].mean(dim=0).tolist()
        for c in range(experiment.task.num_classes)
        if bool((has := label[:, c] == 1 if label.dim() == 2 else label == c).any())
    }
    return {"mean": p.mean(dim=0).tolist(), "per_class": per_class,
            "entropy": torch.histc(entropy.float(), 20, 0.0, 1.0).tolist(), "instances": len(p)}  # fmt: skip


@torch.no_grad()
def taught(experiment: Experiment, student: nn.Module, ensemble: Ensemble, split: str) -> dict[str, Any]:
    """Masks, and agreement of the specialised teachers with the student and with one another, over the instances that
    they see."""
    student.eval()
    views = sorted({experiment.target, *ensemble.modalities})
    count = len(ensemble.members)
    same, seen, both_same, both_seen = (torch.zeros(*shape) for shape in 2 * [(count,)] + 2 * [(count, count)])
    spread: dict[str, list[Tensor]] = {}
    for batch in experiment.feeds.loader(split, views).rows(0, min(LOOKED_AT, len(experiment.splits[split]))):
        batch = batch.to(experiment.accelerator.device)
        said, theirs = call(student, batch.inputs, (experiment.target,)), ensemble(batch.inputs)
        several = experiment.task.multilabel  # of each class yes or no
        said, theirs = (said > 0, theirs > 0) if several else (said.argmax(dim=1), theirs.argmax(dim=2))
        told = ensemble.seen(batch.present)
        there = torch.ones(len(batch.index), count) if told is None else told.float().cpu()
        same += (_shares(theirs == said.unsqueeze(1), 1).cpu() * there).sum(dim=0)
        seen += there.sum(dim=0)
        pairs = there.unsqueeze(1) * there.unsqueeze(2)
        both_same += (_shares(theirs.unsqueeze(1) == theirs.unsqueeze(2), 2).cpu() * pairs).sum(dim=0)
        both_seen += pairs.sum(dim=0)
        _mask_values(ensemble, batch.inputs, there.bool(), spread)
    return {
        "agreement": {"with_student": (same / seen.clamp(min=1)).tolist(),
                      "between": (both_same / both_seen.clamp(min=1)).tolist()},
        "masks": {name: _describe(torch.cat(values)) for name, values in spread.items() if sum(map(len, values))},
    }  # fmt: skip


def _shares(same: Tensor, dims: int) -> Tensor:
    """[B, ...] of the first 1 + `dims` dimensions: which are the same, of dense predictions their pixels' share."""
    return same.float().flatten(1 + dims).mean(dim=-1) if same.dim() > 1 + dims else same.float()


def _mask_values(
    ensemble: Ensemble, inputs: Mapping[str, Tensor], there: Tensor, spread: dict[str, list[Tensor]]
) -> None:  # fmt: skip
    """Masks [B, d] that each specialised teacher's feature gets, of the instances that are `there` [B, M]."""
    for number, member in enumerate(ensemble.members):
        if member.mask is None or member.tap is None:
            continue
        teacher, module = ensemble.teachers[member.teacher], ensemble.masks[member.mask]

        def note(
            feature: Tensor, name: str = member.name, module: Any = module, rows: Tensor = there[:, number]
        ) -> Tensor:
            spread.setdefault(name, []).append(module.mask(feature).float().cpu()[rows])
            return feature

        with hooked(teacher.module, {member.tap: note}, member.name):
            teacher.logits(inputs)


def _describe(values: Tensor) -> dict[str, Any]:
    """How a mask's values lie, and how much they differ from instance to instance."""
    some = values.flatten()[:: values.numel() // 2**23 + 1]  # more than quantiles take, or are worth
    return {
        "mean": float(values.mean()), "low": float(some.quantile(0.05)),
        "high": float(some.quantile(0.95)),
        "between_features": float(values.mean(dim=0).std()) if values.shape[1] > 1 else 0.0,
        "between_instances": float(values.std(dim=0).mean()) if len(values) > 1 else 0.0,
    }  # fmt: skip
