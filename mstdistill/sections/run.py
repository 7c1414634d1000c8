"""Settings of a start, which change no figure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..strict import Settings


class RunSettings(Settings):
    """Everything that may change between two starts of one run."""

    trackers: list[str] = Field(
        default_factory=lambda: ["tensorboard"], description="where figures go (Accelerate's names); []: nowhere"
    )
    checkpoint_seconds: float = Field(20.0, ge=0, description="least time between checkpoints, taken at epochs' ends")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="a checkpoint within an epoch too, every so many steps"
    )
    keep_checkpoints: int = Field(2, ge=1, description="of a stage; older ones are deleted")
    resident_gb: float = Field(4.0, ge=0, description="training data up to this size stay on the GPU; 0: never")
    cuda_graph: bool = Field(False, description="record stage 3's step once and replay it (one GPU, adam or adamw)")
    keep_memory: bool = Field(
        True, description="on a CPU: what a step frees stays with the process for the next one, up to a third faster"
    )
    timeout_seconds: float = Field(
        1800.0, gt=0, description="so long a process waits for the others, then they are lost"
    )
    log_every: int = Field(50, ge=1, description="steps between looks at the running losses")
    page: bool = Field(
        True, description="leave report.html in the run's folder; it is renewed while the run goes on, in at most 1 % "
        "of its time"
    )  # fmt: skip
    stop_after: Literal["cotrain", "specialise", "distill"] | None = Field(
        None, description="end the run after this stage; the same command without it goes on"
    )
