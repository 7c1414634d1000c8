"""What a run has found: every figure of its tables, and the files and tables that it leaves."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from . import ranks
from .data.present import presence
from .data.view import modality_of
from .evaluation import Evaluation
from .experiment import Experiment
from .files import write_text
from .report.known import Known, page_split
from .sight import shows
from .student import export_student
from .tables import summary_tables


def summary_of(
    experiment: Experiment, outcome: Any, twin: nn.Module | None, started: float
) -> tuple[dict[str, Any], Known]:  # fmt: skip
    """Every figure of the run, student and teachers, on validation and test; and what its page need not measure."""
    target = (experiment.target,)
    rows: list[tuple[str, str, nn.Module, Sequence[str]]] = []
    if outcome.finished and twin is not None:
        rows.append(("student alone", "student", twin, target))
    rows += [(f"teacher {t.name}", t.kind(experiment.target), t.module, t.modalities) for t in experiment.teachers]
    if outcome.finished:
        rows.append(("distilled student", "student", experiment.student, target))
    figures, seconds = [], 0.0
    matrices: dict[str, Any] = {}
    precisions: dict[str, Any] = {}
    for name, kind, module, view in rows:
        entry: dict[str, Any] = {"name": name, "kind": kind, "sees": [modality_of(one) for one in view]}
        for split in ("validation", "test"):
            shown = split in experiment.splits and experiment.judges(view, split)
            if shown and shows(experiment.teachers, module, view, experiment.splits[split]):
                before = time.monotonic()
                found = experiment.evaluate(module, view, split)
                if split == page_split(experiment):
                    if isinstance(found, Evaluation):
                        matrices[name] = found.matrix
                    else:
                        precisions[name] = list(found.metrics.per_class[1])
                    seconds += (time.monotonic() - before) * experiment.accelerator.num_processes
                entry[split] = found.as_dict()
        figures.append(entry)
    stages = {}
    for path in sorted(experiment.folder.glob("*/result.json"), key=lambda found: found.stat().st_mtime):
        facts = json.loads(path.read_text())
        stages[path.parent.name] = {k: value for k, value in facts.items() if k not in ("history", "fingerprint")}
    summary = {
        "task": experiment.task.name,
        "target": modality_of(experiment.target),
        "method": experiment.recipe.method,
        "seed": experiment.recipe.seed,
        **_labelled(experiment),
        **_present(experiment),
        "networks": figures,
        "routing_share": outcome.shares,
        "stages": stages,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return summary, Known(matrices, seconds, precisions)


def _labelled(experiment: Experiment) -> dict[str, Any]:
    """How many training instances are labelled, where some aren't."""
    known = getattr(experiment.splits["train"], "labelled", None)
    return {} if known is None else {"labelled": {"instances": len(known), "labelled": int(known.sum())}}


def _present(experiment: Experiment) -> dict[str, Any]:
    """How many training instances have a modality, of those that some lack, and how many were left out."""
    found = {modality_of(view): int(values.sum()) for view, values in presence(experiment.splits["train"]).items()}
    left = {name: len(rows) for name, rows in experiment.left_out.items()}
    facts = {"instances": len(experiment.splits["train"]), "have": found, "left_out": left}
    return {"present": facts} if found or left else {}


def finish(experiment: Experiment, summary: dict[str, Any], maker: Mapping[str, Any] | None) -> None:
    screen, folder = experiment.screen, experiment.folder
    markdown, shown = summary_tables(summary)
    if ranks.rank() == 0:
        write_text(folder / "summary.json", json.dumps(summary, indent=1))
        write_text(folder / "summary.md", markdown)
        export_student(folder / "student", experiment.student, experiment.task, experiment.target, maker, summary,
                       experiment.recipe.data.dir)  # fmt: skip
    ranks.wait()
    for table in shown:
        screen.say(table)
    took = "  ".join(f"{name} {facts['seconds']:.1f} s" for name, facts in summary["stages"].items())
    screen.say(f"stages: {took}; this call {summary['seconds']:.1f} s")
    screen.say(f"run folder: {folder}  (summary.md, student/, config.yaml)")
