"""How a stage learns, whichever it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..strict import Settings


class OptimSettings(Settings):
    """How a stage learns."""

    epochs: int = Field(1, ge=0, description="passes over the training data")
    lr: float = Field(1e-4, gt=0, description="learning rate, the largest of the schedule")
    batch_size: int | None = Field(None, ge=1, description="per process; none: the recipe's batch_size")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd has a momentum of 0.9")
    weight_decay: float = Field(0.0, ge=0, description="the optimiser's own")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: down to zero over the stage"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps in which the rate rises from zero")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")
