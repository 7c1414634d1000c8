"""A student's model card: YAML that the Hub's checker accepts, how to use it, a run's figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data.sources.opening import HUB, on_hub
from .markup import plain
from .tables import columns_of, summary_tables

# What the Hub calls a metric; its name in a run's tables is kept beside it.
_METRICS = {"accuracy": "accuracy", "average_accuracy": "balanced_accuracy", "weighted_f1": "f1",
            "kappa": "cohen_kappa", "loss": "loss", "map_macro": "average_precision",
            "map_weighted": "average_precision", "f1_micro": "f1", "f1_macro": "f1", "auroc": "roc_auc"}  # fmt: skip
_TASKS = {name: f"{name}-classification" for name in ("image", "audio", "text", "video")}
_HERE = "this folder"
# Which folder or repository the card's example loads.
_LOADED = re.compile(r'(Student\.from_pretrained\(|pipeline\("[a-z-]+", )"[^"\n]*"')


def make_card(config: Mapping[str, Any], summary: Mapping[str, Any] | None = None, data: str | None = None) -> str:
    """The card of a student.

    Args:
        config: of the student.
        summary: of the run that it comes from.
        data: what the run's `data.dir` says.
    """
    from huggingface_hub import ModelCard

    sees, task = plain(config.get("modality") or "one modality"), config.get("task")
    shape = "x".join(map(str, config.get("input_shape") or ())) or "as in training"
    several = ", of each class a yes or no of its own; `predict` gives 0s and 1s" if config.get("multilabel") else ""
    title = f"# A student that sees {sees}" + (f", distilled on {plain(task)}" if task else "")
    told = f"Input: {sees} [batch, {shape}]; output: logits [batch, {config.get('num_classes', 'classes')}]{several}."
    card: Any = ModelCard("---\n{}\n---\n")
    card.data = _metadata(config, summary, data)
    card.text = f"\n{title}\n\n{told}\n\n{_example(config)}\n"
    if summary is not None:
        card.text += "\n" + summary_tables(summary)[0].replace("# ", "## ", 1)
    return str(card)


def published(card: str, name: str, licence: str | None = None) -> str:
    """A card as it is in a repository: its example loads that, what is measured bears its name.

    Args:
        licence: as the Hub writes it; None: what the card says, else "other".
    """
    from huggingface_hub import ModelCard

    found: Any = ModelCard(card if card.startswith("---") else f"---\n{{}}\n---\n{card}")
    if licence is not None or found.data.license is None:
        found.data.license = licence or "other"
    if found.data.eval_results:
        found.data.model_name = name.rpartition("/")[2]
    found.text = _LOADED.sub(rf'\g<1>"{name}"', found.text)
    return str(found)


def _metadata(config: Mapping[str, Any], summary: Mapping[str, Any] | None, data: str | None) -> Any:
    from huggingface_hub import ModelCardData

    hf = config.get("hf") or {}
    own = hf.get("saved") == "root"  # transformers' pipelines take it
    results = _results(config, summary) if summary is not None else []
    return ModelCardData(
        base_model=hf["model"] if _is_hub_id(hf.get("model")) and hf.get("pretrained", True) else None,
        datasets=[on_hub(data)[0]] if data is not None and data.startswith(HUB) else None,
        eval_results=results or None,
        library_name="transformers" if own else "mstdistill",
        license="other",
        metrics=sorted({one.metric_type for one in results}) or None,
        model_name=f"{config.get('task')}-{config.get('modality')}" if results else None,
        pipeline_tag=_TASKS.get(_kind(config)) if own else None,
        tags=["mstdistill", "knowledge-distillation", "cross-modal"],
    )


def _results(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Any]:
    """The student's figures on validation and test, as the Hub's model-index has them."""
    from huggingface_hub import EvalResult

    student, task = summary["networks"][-1], str(config.get("task"))
    dense = config.get("ignore_index") is not None
    asked = "image-segmentation" if dense else _TASKS.get(str(config.get("modality")), "other")
    return [
        EvalResult(
            task_type=asked, dataset_type=re.sub(r"[^\w.-]+", "-", task), dataset_name=task, dataset_split=split,
            metric_type=_METRICS[key], metric_name=f"{split} {title}",
            metric_value=round(float(student[split][key]), 6),
        )
        for split in ("validation", "test") if split in student
        for key, title in columns_of(summary)
        if key in student[split] and _finite(student[split][key])
    ]  # fmt: skip


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(float(value)) < float("inf")


def _example(config: Mapping[str, Any]) -> str:
    """Python that loads the student and gives it something, as it stands."""
    hf, kind = config.get("hf") or {}, _kind(config)
    load = f'student = Student.from_pretrained("{_HERE}")'
    if not config.get("backbone") and not hf:
        load = f'student = Student.from_pretrained("{_HERE}", module=YourNetwork())'
    lines, use = _given(kind, config.get("input_shape") or ())
    code = [*lines, "from mstdistill import Student", "", load, use, "classes = student.predict(batch)"]
    parts = ["```python\n" + "\n".join(code) + "\n```"]
    if hf.get("saved") == "root" and kind in _TASKS:
        raw = {"image": '"picture.png"', "audio": '"sound.wav"', "text": '"a text"'}[kind]
        parts.append(
            "Or with transformers alone:\n\n```python\nfrom transformers import pipeline\n\n"
            f'answers = pipeline("{_TASKS[kind]}", "{_HERE}")({raw})\n```'
        )
    return "\n\n".join(parts)


def _given(kind: str, shape: Sequence[int]) -> tuple[list[str], str]:
    """What a first batch needs, and the line that makes it."""
    if kind == "image":
        return ["from PIL import Image"], 'batch = student.view([Image.open("picture.png")])'
    if kind == "audio":
        return [
            "import numpy as np"
        ], 'batch = student.view([(np.zeros(16000, dtype="float32"), 16000)])  # samples, rate'
    if kind == "text":
        return [], 'batch = student.view(["a text"])'
    numbers = ", ".join(map(str, shape))
    made = f"torch.rand(1, {numbers})" if shape and all(shape) else "..."
    return ["import torch"], f"batch = {made}  # your own, as in training"


def _kind(config: Mapping[str, Any]) -> str:
    """Of raw things that the student's processor takes; "array" where it has none."""
    ports = (config.get("hf") or {}).get("ports") or [{"kind": "array"}]
    return str(ports[0]["kind"])


def _is_hub_id(model: Any) -> bool:
    if not isinstance(model, str) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        return False
    return not Path(model).exists()
