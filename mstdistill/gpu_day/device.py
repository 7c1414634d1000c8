"""What the stages run on: the GPU that is there, or a CPU that stands for one, with little of everything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    """A device, and how much is asked of it.

    Attributes:
        name: for people and for the folder of results.
        backend: of torch.distributed.
        environment: for every stage.
        tests: what pytest is given, of the kernels' correctness.
        benchmark: arguments of the kernels' benchmark.
        tiles: arguments of the search for tiles.
        training: settings of each run of av-digits.
        shapes: settings, and instances, of a run on AV-MNIST's shapes.
        graphs: whether steps can be captured as CUDA graphs.
        precisions: that are tried.
        scale: of the stages' budgets of seconds.
    """

    name: str
    backend: str
    environment: Mapping[str, str]
    tests: tuple[str, ...]
    benchmark: tuple[str, ...]
    tiles: tuple[str, ...]
    training: tuple[str, ...]
    shapes: Mapping[str, int]
    graphs: bool
    precisions: tuple[str, ...] = ("bf16", "fp16")
    scale: float = 1.0
    unset: tuple[str, ...] = field(default=("TRITON_INTERPRET", "MSTDISTILL_KERNELS", "MSTDISTILL_TILES"))

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def gpu() -> Device | None:
    """The GPU that torch sees; None: it sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return Device(
        torch.cuda.get_device_name(), "nccl", {}, ("tests/gpu/test_kernels.py",),
        ("--budget", "100", "--baselines", "eager,compile,liger,sdpa"), ("--budget", "55"),
        ("cotrain.epochs=4", "specialise.epochs=1", "distill.epochs=12", "alone.enabled=false"),
        {"instances": 8192, "epochs": 3, "batch": 512}, True,
    )  # fmt: skip


def rehearsal() -> Device:
    """A CPU with Triton's interpreter: every stage from end to end, in a minute."""
    return Device(
        "rehearsal", "gloo", {"ACCELERATE_USE_CPU": "true", "TRITON_INTERPRET": "1"},
        ("tests/kernels/test_router.py", "-k", "triton-KL-True-dtype1 and size1"),
        ("--kernel", "route", "--shape", "B=512", "--baselines", "eager"),
        ("--kernel", "scale_rows", "--kernel", "kd_wide", "--most", "1"),
        ("cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=1", "alone.enabled=false", "data.limit=200"),
        {"instances": 64, "epochs": 1, "batch": 16}, False, ("bf16",), 3.0,
        ("MSTDISTILL_KERNELS", "MSTDISTILL_TILES"),
    )  # fmt: skip
