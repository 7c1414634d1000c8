"""What a finished run's page shows, as numbers: measured on the test split with the saved weights, kept as JSON."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..data.view import modality_of
from ..errors import first_line
from ..evaluation import Evaluated, Evaluation, evaluate
from ..experiment import Experiment
from ..sight import shows, sight
from ..stages import rounds
from ..state import load_state
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call, freeze
from ..weights import part
from .attention import COMPARED, Gallery, attention
from .curves import finished_histories
from .gain import ALONE, DISTILLED
from .known import Known, page_split
from .mixture import LOOKED_AT, routed, taught

# How often longer than to evaluate all networks once, on as many instances, it takes to look at masks and agreement,
# and to make maps; rather too much. And what each part takes at least, in seconds.
_TAUGHT, _MAPS, _AT_LEAST = 10.0, 35.0, 0.02
# Before a teacher's name in tables.
TEACHER = "teacher "


def run_figures(
    experiment: Experiment, student: nn.Module, known: Known | None = None,
    affords: Callable[[float], bool] = lambda seconds: True,
) -> tuple[dict[str, Any], list[Gallery]]:  # fmt: skip
    """Figures of a finished run, for JSON, and its pictures.

    Args:
        student: with the weights that the run selected.
        known: None: all is measured.
        affords: whether about so many seconds may be spent; what isn't measured is named in `left_out`.
    """
    folder, split = experiment.folder, page_split(experiment)
    networks = {
        name: network for name, network in networks_of(experiment, student, with_alone=known is None).items()
        if experiment.judges(network[1], split) and shows(experiment.teachers, *network, experiment.splits[split])
    }  # fmt: skip
    started = time.monotonic()
    per_class = ({"confusion": {name: _whole(matrix) for name, matrix in known.matrices.items()},
                  "average_precision": dict(known.precisions)} if known else
                 _per_class(experiment, networks, split))  # fmt: skip
    once = known.seconds if known else time.monotonic() - started
    summary = json.loads((folder / "summary.json").read_text())
    found: dict[str, Any] = {
        "summary": summary,
        "histories": finished_histories(folder),
        "classes": list(experiment.task.class_names) or [str(i) for i in range(experiment.task.num_classes)],
        "split": split,
        "dense": experiment.dense,
        **{what: figures for what, figures in per_class.items() if figures or what == "confusion"},
        "config": (folder / "config.yaml").read_text(),
        "left_out": [],
    }

    def may(what: str, seconds: float, most: int) -> bool:
        """Whether a part fits, that takes so long beside one look at `most` instances."""
        if affords(seconds * min(1.0, most / max(len(experiment.splits[split]), 1)) + _AT_LEAST):
            return True
        found["left_out"].append(what)
        return False

    ensemble = specialised(experiment) if experiment.recipe.method == "mst" else None
    if ensemble is not None and (folder / "distill" / "result.safetensors").exists():
        found |= {"members": ensemble.names,
                  "sees": {t.name: list(map(modality_of, t.modalities)) for t in experiment.teachers}}  # fmt: skip
        judged = all(experiment.judges(teacher.modalities, split) for teacher in experiment.teachers)
        asked = judged or experiment.recipe.routing.reads == "student"
        if asked and may("routing by class", once, LOOKED_AT):
            found["routing"] = routed(experiment, student, ensemble, split)
        if judged and may("masks, agreement", _TAUGHT * once, LOOKED_AT):
            found |= taught(experiment, student, ensemble, split)
    galleries: list[Gallery] = []
    if may("where the networks look", _MAPS * once, COMPARED):
        teachers = {name.removeprefix(TEACHER): one for name, one in networks.items() if name.startswith(TEACHER)}
        try:
            found["attention"], galleries = attention(experiment, teachers, student, ensemble, split)
        except RuntimeError as error:  # networks of other people: what looks like a map need not be one
            found["attention"] = {"missing": f"No maps: {first_line(error)}"}
    return found, galleries


def specialised(experiment: Experiment) -> Ensemble:
    """The specialised teachers with their trained masks; the teachers hold their weights already."""
    ensemble = experiment.build_ensemble("independent")
    masks = experiment.result("specialise")
    if masks is not None and len(ensemble.masks):
        ensemble.load_state_dict(masks.state)
    ensemble.mask_mode = experiment.recipe.mask.mode
    freeze(ensemble)
    return ensemble


def networks_of(
    experiment: Experiment, student: nn.Module, with_alone: bool
) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:  # fmt: skip
    """The networks of the final table whose weights the run has kept; teachers hold theirs afterwards.

    Args:
        with_alone: the student alone too.
    """
    found: dict[str, tuple[nn.Module, tuple[str, ...]]] = {}
    apart = experiment.result("alone") if with_alone and experiment.recipe.alone.enabled else None
    if apart is not None:
        twin = copy.deepcopy(student)
        load_state(twin, apart.state)
        found[ALONE] = (twin, (experiment.target,))
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
    found[DISTILLED] = (student, (experiment.target,))
    return found


def _per_class(
    experiment: Experiment, networks: Mapping[str, tuple[nn.Module, tuple[str, ...]]], split: str
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By network, its confusion matrix, or of several classes at once each class's average precision."""
    confusion: dict[str, Any] = {}
    precision: dict[str, Any] = {}
    for name, (module, view) in networks.items():
        result = _judged(experiment, module, view, split)
        if isinstance(result, Evaluation):
            confusion[name] = _whole(result.matrix)
        else:
            precision[name] = list(result.metrics.per_class[1])
    return {"confusion": confusion, "average_precision": precision}


def _judged(experiment: Experiment, module: nn.Module, view: tuple[str, ...], split: str) -> Evaluated:
    return evaluate(
        lambda batch: call(freeze(module), batch.inputs, view), experiment.feeds.loader(split, view),
        experiment.accelerator.device, sees=sight(experiment.teachers, module, view),
    )  # fmt: skip


def _whole(matrix: Tensor) -> list[list[int]]:
    return [[int(x) for x in row] for row in matrix.tolist()]
