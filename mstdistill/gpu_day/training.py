"""Stages that train: with and without a captured step, through NCCL, in half precision."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from .device import Device
from .stage import Failed

# Losses of a captured step and of one that isn't, relative.
_SAME = 1e-3


def digits(device: Device, folder: Path) -> dict[str, Any]:
    """av-digits, with graph capture off and on.

    Raises:
        Failed: a run fails, or the two learn differently.
    """
    return _with_and_without(device, folder, "av-digits", [])


def shapes(device: Device, folder: Path) -> dict[str, Any]:
    """AV-MNIST's networks on random instances of its shapes, with graph capture off and on.

    Raises:
        Failed: a run fails, or the two learn differently.
    """
    data = _random_av_mnist(folder / "data", device.shapes["instances"])
    epochs = [f"{stage}.epochs={device.shapes['epochs']}" for stage in ("cotrain", "specialise", "distill")]
    words = [f"data.dir={data}", f"batch_size={device.shapes['batch']}", "data.split=publisher", *epochs]
    return _with_and_without(device, folder, "av-mnist", words)


def several(device: Device, folder: Path) -> dict[str, Any]:
    """One process that talks to itself through NCCL.

    Raises:
        Failed: it doesn't start, or learns otherwise than a process alone.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    alone, launched = (
        _train(device, folder / name, "av-digits", [], start) for name, start in (("alone", []), ("launched", launcher))
    )
    _check_same(alone["losses"], launched["losses"], f"alone and through {device.backend}")
    return {"backend": device.backend, "seconds alone": alone["seconds"], "seconds launched": launched["seconds"],
            "last loss": launched["losses"][-1]}  # fmt: skip


def precisions(device: Device, folder: Path) -> dict[str, Any]:
    """av-digits in half precision.

    Raises:
        Failed: a loss isn't finite.
    """
    found: dict[str, Any] = {}
    for name in device.precisions:
        run = _train(device, folder / name, "av-digits", [f"precision={name}"])
        found[name] = {"last loss": run["losses"][-1], "seconds": run["seconds"], "accuracy": run["accuracy"]}
        if not all(math.isfinite(loss) for loss in run["losses"]):
            raise Failed(f"{name}: a loss isn't finite", found)
    return found


def _with_and_without(device: Device, folder: Path, task: str, words: list[str]) -> dict[str, Any]:
    runs = {
        graph: _train(device, folder / f"graph-{graph}", task, [*words, f"run.cuda_graph={graph}"])
        for graph in (("false", "true") if device.graphs else ("false",))
    }
    if len(runs) == 2:
        _check_same(runs["false"]["losses"], runs["true"]["losses"], "without and with graph capture")
    return {
        f"graph {graph}": {"seconds": run["seconds"], "last loss": run["losses"][-1], "accuracy": run["accuracy"]}
        for graph, run in runs.items()
    }


def _train(device: Device, out: Path, task: str, words: list[str], start: list[str] | None = None) -> dict[str, Any]:
    """A run's losses of stage 3, its seconds and its student's accuracy.

    Raises:
        Failed: it ends otherwise than well; with its last line.
    """
    settings = [*(device.training if task == "av-digits" else ("alone.enabled=false",)), *words]
    command = [
        sys.executable,
        *(start or []),
        "-m",
        "mstdistill",
        "train",
        task,
        *settings,
        "--out",
        str(out),
        "--fresh",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Failed(f"{task}: a run ended with {done.returncode}: {said[-1][:200] if said else 'it said nothing'}")
    history = json.loads((out / "distill" / "result.json").read_text())["history"]
    summary = json.loads((out / "summary.json").read_text())
    student = summary["networks"][-1]
    return {
        "losses": [float(epoch["train/loss"]) for epoch in history], "seconds": round(summary["seconds"], 1),
        "accuracy": student.get("test", student["validation"])["accuracy"],
    }  # fmt: skip


def _check_same(one: list[float], other: list[float], what: str) -> None:
    worst = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, other, strict=True))
    if not worst <= _SAME:
        raise Failed(f"losses {what} differ by {worst:.1e} of themselves, more than {_SAME:.0e}")


def _random_av_mnist(folder: Path, instances: int) -> Path:
    """Prepared data of AV-MNIST's shapes: time doesn't depend on what they show."""
    import numpy as np

    from ..data.prepared.build import build
    from ..data.prepared.plan import Column, Item, Plan
    from ..data.sources.av_mnist import TASK
    from ..engine.progress import Screen

    random = np.random.default_rng(0)

    sizes = {name: tuple(int(n or 1) for n in shape) for name, shape in TASK.modalities.items()}

    def read(item: int) -> dict[str, Any]:
        return {name: random.random(shape, dtype=np.float32) for name, shape in sizes.items()}

    columns = {name: Column(shape, "float16") for name, shape in sizes.items()}
    parts = (0, 0, 0, 1, 2)  # train, validation, test
    items = [Item(str(i), i, i % TASK.num_classes, parts[i % 5]) for i in range(instances)]
    return build(folder, Plan(TASK.name, TASK.version, columns, items, read, {}, order="random"), Screen(quiet=True), 1)
