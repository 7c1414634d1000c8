"""What a finished run's page shows, as numbers: measured on the test split with the saved weights, kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.view import modality_of
from ..engine.progress import Screen
from ..errors import DataError
from ..evaluation import Evaluation, evaluate
from ..experiment import Experiment
from ..pipeline import load_experiment
from ..routing import DenseRouter, Router
from ..sight import sight
from ..stages import rounds
from ..state import load_state
from ..student import Student
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call, freeze, hooked
from ..weights import part
from .attention import Gallery, attention

# Instances that routing, masks and agreement are looked at on.
LOOKED_AT = 2000
# Before a teacher's name in tables.
TEACHER = "teacher "


def run_figures(folder: Path) -> tuple[dict[str, Any], list[Gallery]]:
    """Figures of a finished run, for JSON, and its pictures.

    Raises:
        DataError: no finished run there.
    """
    if not (folder / "summary.json").exists():
        raise DataError(f"{folder} holds no finished run; train it to its end first")
    summary = json.loads((folder / "summary.json").read_text())
    histories = {
        path.parent.name: json.loads(path.read_text())["history"]
        for path in sorted(folder.glob("*/result.json"), key=lambda found: found.stat().st_mtime)
    }
    experiment, recipe = load_experiment(folder, Screen(quiet=True))
    split = "test" if "test" in experiment.splits else "validation"
    names = list(experiment.task.class_names) or [str(i) for i in range(experiment.task.num_classes)]
    student = Student.from_pretrained(folder / "student").module.to(experiment.accelerator.device)
    networks = _networks(experiment, folder, student)
    found: dict[str, Any] = {
        "summary": summary,
        "histories": histories,
        "classes": names,
        "split": split,
        **_per_class(experiment, networks, split),
        "config": (folder / "config.yaml").read_text(),
    }
    ensemble = _specialised(experiment) if recipe.method == "mst" else None
    if ensemble is not None and (folder / "distill" / "result.safetensors").exists():
        found |= _mixture(experiment, ensemble, student, split)
    teachers = {name.removeprefix(TEACHER): network for name, network in networks.items() if name.startswith(TEACHER)}
    found["attention"], pictures = attention(experiment, teachers, student, ensemble, split)
    return found, pictures


def _specialised(experiment: Experiment) -> Ensemble:
    """The specialised teachers with their trained masks; the teachers hold their weights already."""
    ensemble = experiment.build_ensemble("independent")
    masks = experiment.result("specialise")
    if masks is not None and len(ensemble.masks):
        ensemble.load_state_dict(masks.state)
    ensemble.mask_mode = experiment.recipe.mask.mode
    freeze(ensemble)
    return ensemble


def _networks(experiment: Experiment, folder: Path, student: nn.Module) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """The networks of the final table whose weights the run has kept; teachers hold theirs afterwards."""
    found: dict[str, tuple[nn.Module, tuple[str, ...]]] = {}
    cotrained = rounds.latest(experiment)
    for number, teacher in enumerate(experiment.teachers):
        alone = experiment.result(f"teacher-{teacher.name}")
        if cotrained is not None:
            load_state(teacher.module, part(cotrained.state, f"teachers.{number}"))
        elif alone is not None:
            load_state(teacher.module, alone.state)
        elif not teacher.frozen:
            continue
        found[TEACHER + teacher.name] = (teacher.module, teacher.modalities)
    found["distilled student"] = (student, (experiment.target,))
    return found


def _per_class(
    experiment: Experiment, networks: Mapping[str, tuple[nn.Module, tuple[str, ...]]], split: str
) -> dict[str, Any]:  # fmt: skip
    """Each network's confusion matrix, or of several classes at once each class's average precision."""
    confusion: dict[str, list[list[int]]] = {}
    precision: dict[str, list[float]] = {}
    for name, (module, view) in networks.items():
        result = evaluate(
            lambda batch, module=module, view=view: call(freeze(module), batch.inputs, view),  # type: ignore[misc]
            experiment.loader(split, view), experiment.accelerator.device,
            sees=sight(experiment.teachers, module, view),
        )  # fmt: skip
        if isinstance(result, Evaluation):
            confusion[name] = [[int(x) for x in row] for row in result.matrix.tolist()]
        else:
            precision[name] = list(result.metrics.per_class[1])
    return {"confusion": confusion} | ({"average_precision": precision} if precision else {})


@torch.no_grad()
def _mixture(experiment: Experiment, ensemble: Ensemble, student: nn.Module, split: str) -> dict[str, Any]:
    """Routing, masks and agreement on the split's first instances."""
    state = experiment.result("distill").state  # type: ignore[union-attr]
    router = (DenseRouter if experiment.dense else Router)(experiment.task.num_classes, len(ensemble.members))
    router.load_state_dict(part(state, "router"))
    device = experiment.accelerator.device
    router.to(device).eval()
    student.eval()
    views = sorted({experiment.target, *ensemble.modalities})
    probabilities, labels, same, teachers_same = [], [], [], []
    spread: dict[str, list[Tensor]] = {}
    seen = 0
    for batch in experiment.loader(split, views).epoch():
        batch = batch.to(device)
        logits = call(student, batch.inputs, (experiment.target,))
        probabilities.append(router(logits.to(next(router.parameters()).dtype)).softmax(dim=1).cpu())
        labels.append(batch.label.cpu() if batch.label.dim() < 3 else batch.label.flatten(1).mode(dim=1).values.cpu())
        if experiment.task.multilabel:  # of each class yes or no
            taught, said = ensemble(batch.inputs) > 0, logits > 0
        else:
            taught, said = ensemble(batch.inputs).argmax(dim=2), logits.argmax(dim=1)
        alike = (taught == said.unsqueeze(1)).float()
        same.append(alike.flatten(2).mean(dim=2).cpu() if taught.dim() > 2 else alike.cpu())
        teachers_same.append(_pairs(taught.cpu()))
        _mask_values(ensemble, batch.inputs, spread)
        seen += len(batch.index)
        if seen >= LOOKED_AT:
            break
    p, label = torch.cat(probabilities), torch.cat(labels)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(dim=1) / math.log(max(p.shape[1], 2))
    per_class = {
        str(c): p[has].mean(dim=0).tolist()
        for c in range(experiment.task.num_classes)
        if bool((has := label[:, c] == 1 if label.dim() == 2 else label == c).any())
    }
    return {
        "members": ensemble.names,
        "sees": {t.name: list(map(modality_of, t.modalities)) for t in experiment.teachers},
        "routing": {"mean": p.mean(dim=0).tolist(), "per_class": per_class,
                    "entropy": torch.histc(entropy.float(), 20, 0.0, 1.0).tolist(), "instances": len(p)},
        "agreement": {"with_student": torch.cat(same).mean(dim=0).tolist(),
                      "between": torch.stack(teachers_same).mean(dim=0).tolist()},
        "masks": {name: _describe(torch.cat(values)) for name, values in spread.items()},
    }  # fmt: skip


def _pairs(taught: Tensor) -> Tensor:
    """[M, M] share of predictions that two specialised teachers have in common, of classes [B, M, ...]."""
    flat = taught.transpose(0, 1).flatten(1)
    return (flat.unsqueeze(0) == flat.unsqueeze(1)).float().mean(dim=2)


def _mask_values(ensemble: Ensemble, inputs: Mapping[str, Tensor], spread: dict[str, list[Tensor]]) -> None:
    """Masks [B, d] that each specialised teacher's feature gets."""
    for member in ensemble.members:
        if member.mask is None or member.tap is None:
            continue
        teacher, module = ensemble.teachers[member.teacher], ensemble.masks[member.mask]

        def note(feature: Tensor, name: str = member.name, module: Any = module) -> Tensor:
            spread.setdefault(name, []).append(module.mask(feature).float().cpu())
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
