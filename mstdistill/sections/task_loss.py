"""Settings of the task's own loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..strict import Settings


class TaskLossSettings(Settings):
    """The task's own loss, in every stage and method."""

    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class counts the same, however few instances it has; multi-label: its yes "
        "and its no do"
    )  # fmt: skip
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="part of each label that goes to all classes evenly; not for multi-label tasks"
    )
