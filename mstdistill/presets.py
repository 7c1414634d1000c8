"""Presets over any recipe: few labels; the paper's released settings; and what the released comparison runs, one name
for most of its methods, and one each for those with settings of their own."""

from __future__ import annotations

from typing import Any

_RELEASED: dict[str, Any] = {
    "temperature": 4.0,
    "distill": {"epochs": 100, "lr": 1e-4, "optimizer": "adam", "schedule": "constant"},
    "baseline": {"teacher_epochs": 100, "teacher_lr": 1e-4, "alpha": 0.5, "alpha_decay": {"factor": 0.5, "every": 30}},
    "validation_mean": "batches",
}


def _released(
    distill: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    return {
        **_RELEASED,
        **changes,
        "distill": {**_RELEASED["distill"], **(distill or {})},
        "baseline": {**_RELEASED["baseline"], "options": options or {}},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # Few labels, many pairs: each network learns from its labels, then in rounds from what all of them say together.
    # Where every instance has a label the recipe stays as it is.
    "labels": {
        "data": {"unlabelled": "learn"},
        "partly": {
            "temperature": 2.0, "mask": {"enabled": False}, "routing": {"rule": "product", "signal": "none"},
            "cotrain": {"agreement": 0.0}, "rounds": {"count": 3},
        },
    },
    "released": {
        "mask": {"mode": "cumulative"},
        "routing": {"rule": "topk-mean", "k": 1, "signal": "none", "balance": "KL"},
        "cotrain": {"epochs": 1, "select": "last"},
        "specialise": {"epochs": 1},
        "distill": {"epochs": 100, "weights": {
            "task": 1.0, "kd": 1.0, "balance": 1.0,
            "kd_decay": {"factor": 0.5, "every": 30}, "balance_decay": {"factor": 0.9, "every": 10},
        }},
        "validation_mean": "batches",
    },
    "released-baseline": _released(),
    "released-fitnets": _released(method="fitnets", options={"hint_epochs": 100, "hint_lr": 1e-3}),
    "released-c2kd": _released(method="c2kd", distill={"optimizer": "sgd", "lr": 1e-2}),
    "released-mgdfr": _released(
        method="mgdfr", options={"joint_epochs": 100, "joint_lr": 1e-3, "joint_optimizer": "sgd"}
    ),
}  # fmt: skip
