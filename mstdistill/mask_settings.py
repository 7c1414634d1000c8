"""Settings of what stage 2 asks of the masks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .strict import Settings


class MaskObjective(Settings):
    """Beside the student's agreement; the figures are in docs/results.md."""

    later: ClassVar[tuple[str, ...]] = ("keep", "keep_weight", "correct")

    task: float = Field(0.0, ge=0, description="weight of the labels beside the student's agreement")
    keep: float | None = Field(
        None, gt=0, lt=1, description="share of its features that each instance's mask is to keep, so that it must "
        "choose which; none: what helps the agreement"
    )  # fmt: skip
    keep_weight: float = Field(10.0, gt=0, description="of that share's squared deviation beside the agreement")
    correct: bool = Field(
        False, description="an instance that the student gets wrong teaches by its label and not by the student; for "
        "tasks of one class an instance"
    )  # fmt: skip
