"""Settings of what a student is compared with."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..strict import Settings


class AloneSettings(Settings):
    """The comparison: the student without teachers, with as many epochs in all and the same selection."""

    enabled: bool = Field(True, description="train it too, for the final table")
    epochs: int | None = Field(None, ge=1, description="of the student alone; none: as many as its stages have in all")


class StepDecay(Settings):
    """A weight times `factor` after every `every` epochs."""

    factor: float = Field(1.0, gt=0, description="what the weight is multiplied by; 1: it stays")
    every: int = Field(1, ge=1, description="epochs between two such steps")


class BaselineSettings(Settings):
    """The comparison's methods (docs/baselines.md); the student's epochs, rate and batch are those of `distill`."""

    teacher: str = Field("multimodal", description="who teaches: multimodal, crossmodal or a teacher's name")
    teacher_epochs: int | None = Field(None, ge=0, description="of a teacher alone; none: distill.epochs")
    teacher_lr: float | None = Field(None, gt=0, description="of a teacher alone; none: distill.lr")
    alpha: float = Field(0.5, ge=0, le=1, description="the distillation's part of the loss; the task has the rest")
    alpha_decay: StepDecay = StepDecay(factor=0.5, every=30)
    student_taps: list[str] = Field(default_factory=list, description="features it learns by; none: found by a dry run")
    teacher_taps: list[str] = Field(default_factory=list, description="features it teaches by; none: found likewise")
    options: dict[str, Any] = Field(default_factory=dict, description="a method's own numbers")
