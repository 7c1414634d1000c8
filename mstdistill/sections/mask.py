"""Settings of the masks, and of what stage 2 asks of them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..strict import Settings


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


class MaskSettings(Settings):
    """The mask modules."""

    enabled: bool = Field(True, description="false: the unmasked teachers form the mixture")
    heads: int = Field(3, ge=1, description="of the mask's attention")
    hidden_dim_factor: int = Field(2, ge=1, description="hidden width = d // (factor * heads) * heads")
    hidden: int | None = Field(None, ge=1, description="hidden width, instead of the factor")
    max_parameters: int | None = Field(None, ge=1, description="budget a mask: the hidden width shrinks to fit")
    mode: Literal["independent", "cumulative"] = Field(
        "independent", description="masks in stage 3: each alone, or a teacher's stacked as in the released code"
    )
