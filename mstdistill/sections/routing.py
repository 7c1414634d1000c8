"""What a recipe says of the router; `routing.py`, `informed_router.py` and `stages/folds.py` do it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ..strict import Settings

# Rules under which a router decides.
ASKING = ("topk-mean", "topk-weighted", "soft")


class RoutingSettings(Settings):
    """How the mixture picks teachers."""

    later: ClassVar[tuple[str, ...]] = ("sharpness", "calibrate", "reads", "folds")
    rule: Literal[
        "topk-mean", "topk-weighted", "soft", "random", "fixed", "entropy", "margin", "agreement", "product"
    ] = Field(
        "topk-mean",
        description="who teaches an instance: the k best, evenly or weighted; all, weighted by the router; k drawn; "
        "one; all, by how sure they are (entropy, margin), how far they agree, or their probabilities multiplied",
    )
    k: int = Field(1, ge=1, description="teachers per instance")
    signal: Literal["none", "distill", "task", "both"] = Field(
        "none", description="what trains the router beside the load balance"
    )
    balance: Literal["KL", "CV"] = Field(
        "KL", description="the load balance: divergence from even use of the teachers, or their use's variation"
    )
    fixed: int = Field(0, ge=0, description="the teacher of rule fixed")
    sharpness: float = Field(
        4.0, ge=0, description="of rules entropy, margin and agreement: 0 averages, more believes the surest more"
    )
    calibrate: bool = Field(
        True, description="of rules by what teachers say: each one's temperature from validation first"
    )
    reads: Literal["student", "teachers"] = Field(
        "student", description="what the router sees: the student's logits, or with them what every teacher says"
    )
    folds: int = Field(
        0, ge=0, description="reads teachers: so often the co-training is repeated, each time without a part of the "
        "labels, and of those rows the router meets teachers that never saw their label; 0: those that learned it"
    )  # fmt: skip

    @model_validator(mode="after")
    def _somebody_reads(self) -> RoutingSettings:
        if self.reads == "teachers" and self.rule not in ASKING:
            raise ValueError(f"reads=teachers is for a router, and rule {self.rule!r} asks none; take one of the rules "
                             f"{', '.join(ASKING)}, or leave reads out")  # fmt: skip
        if self.folds == 1:
            raise ValueError("folds=1 hides all labels at once; take 2 or more, or 0 for none")
        if self.folds and self.reads != "teachers":
            raise ValueError(f"folds={self.folds} is for a router that reads what teachers say; set reads=teachers, or "
                             "leave folds out")  # fmt: skip
        return self
