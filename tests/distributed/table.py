"""Every stage and every method under every engine and several numbers of processes, against one process that sees the
same whole batch: the largest difference of a weight.

python -m tests.distributed.table --out docs/results/parallel         writes parallel.json and parallel.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mstdistill.files import write_text
from mstdistill.methods import BASELINES

from .program import COLUMNS

ROOT = Path(__file__).parents[2]
WHOLE = 16
TOLERANCE = 2e-5
# RKD's square roots near 0 magnify rounding
LOOSE = {"rkd": 1e-4}
STAGES = ("cotrain", "specialise", "distill", "alone")
# A bias before a batch norm decides nothing, has no gradient but rounding, and Adam makes steps of that.
MEANINGLESS = {"c2kd": (".fc1.bias", ".bn.running_mean")}


@dataclass(frozen=True)
class Launch:
    """How a column of the table is started."""

    name: str
    processes: int = 1
    accumulate: int = 1
    zero: int | None = None
    fsdp2: bool = False

    def command(self, out: Path, columns: str) -> list[str]:
        """The words; the whole batch is the same for all."""
        batch = WHOLE // self.processes
        program = ["-m", "tests.distributed.program", str(out), str(batch), str(self.accumulate), columns]
        if self.zero is not None:
            config = out.parent / f"{out.name}.json"
            config.write_text(json.dumps({
                "compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "machine_rank": 0,
                "num_machines": 1, "num_processes": self.processes, "use_cpu": False, "mixed_precision": "no",
                "deepspeed_config": {"zero_stage": self.zero, "gradient_accumulation_steps": 1,
                                     "zero3_init_flag": False, "offload_optimizer_device": "none",
                                     "offload_param_device": "none"},
            }))  # fmt: skip
            return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
                    "--main_process_port", "0", *program]  # fmt: skip
        if self.processes == 1:
            return [sys.executable, *program]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes),
                *program, *(["fsdp2"] if self.fsdp2 else [])]  # fmt: skip

    def environment(self) -> dict[str, str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("ACCELERATE_USE_CPU", None)
        return env | ({"DS_ACCELERATOR": "cpu"} if self.zero is not None else {"ACCELERATE_USE_CPU": "true"})


LAUNCHES = (
    Launch("DDP, 2", 2),
    Launch("DDP, 4", 4),
    Launch("DDP, 2, accumulating 2", 2, 2),
    Launch("ZeRO-1, 2", 2, zero=1),
    Launch("ZeRO-1, 4", 4, zero=1),
    Launch("ZeRO-2, 2", 2, zero=2),
    Launch("ZeRO-2, 4", 4, zero=2),
    Launch("ZeRO-2, 2, accumulating 2", 2, 2, zero=2),
    Launch("ZeRO-3, 2", 2, zero=3),
    Launch("ZeRO-3, 4", 4, zero=3),
    Launch("FSDP2, 2", 2, fsdp2=True),
    Launch("FSDP2, 4", 4, fsdp2=True),
    Launch("FSDP2, 2, accumulating 2", 2, 2, fsdp2=True),
)
ROWS = (*tuple(f"mst: {stage}" for stage in STAGES), "live teachers", "maps and batch norm", *tuple(BASELINES))


def far(one: Path, other: Path, skipped: tuple[str, ...] = ()) -> float:
    """The largest difference of a weight."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys(), f"{one} and {other} hold other tensors"
    kept = [name for name in a if a[name].numel() and not name.endswith(skipped or ("\0",))]
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in kept)


def cell(row: str, one: Path, other: Path) -> float | str:
    """A figure, or why there is none."""
    column = {"live teachers": "live", "maps and batch norm": "maps"}.get(row, row.split(":")[0])
    stages = [row.removeprefix("mst: ")] if row.startswith("mst: ") else None
    if (refused := other / column / "refused.txt").exists():
        return refused.read_text().split("  [run:")[0]
    results = sorted((one / column).glob("*/result.safetensors"))
    pairs = [(path, other / path.relative_to(one)) for path in results if not stages or path.parent.name in stages]
    if not pairs or not all(there.exists() for _, there in pairs):
        return "didn't finish"
    return max(far(here, there, MEANINGLESS.get(column, ())) for here, there in pairs)


def run(launch: Launch, folder: Path) -> tuple[Path, float, str]:
    """Train all columns; the folder, seconds and what went wrong."""
    out = folder / launch.name.replace(", ", "-").replace(" ", "-")
    out.mkdir(parents=True)
    began = time.monotonic()
    done = subprocess.run(launch.command(out, ",".join(COLUMNS)), cwd=ROOT, env=launch.environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    return out, time.monotonic() - began, "" if done.returncode == 0 else done.stderr[-2000:]


def table(launches: tuple[Launch, ...], folder: Path) -> dict[str, Any]:
    """All cells."""
    alone = {}
    for accumulate in sorted({launch.accumulate for launch in launches}):
        name = f"one process, accumulating {accumulate}"
        alone[accumulate], seconds, wrong = run(Launch(name, accumulate=accumulate), folder)
        print(f"{name}: {seconds:.0f} s", flush=True)
        assert not wrong, wrong
    cells: dict[str, dict[str, float | str]] = {row: {} for row in ROWS}
    for launch in launches:
        out, seconds, wrong = run(launch, folder)
        for row in ROWS:
            cells[row][launch.name] = cell(row, alone[launch.accumulate], out)
        print(f"{launch.name}: {seconds:.0f} s {wrong}", flush=True)
    return {"whole_batch": WHOLE, "instances": 75, "torch": torch.__version__, "cells": cells}


def agrees(row: str, value: float | str) -> bool:
    """Whether a cell is what it should be."""
    return isinstance(value, float) and value <= LOOSE.get(row, TOLERANCE)


def markdown(found: dict[str, Any]) -> str:
    """The table, and below it why cells are empty."""
    cells: dict[str, dict[str, float | str]] = found["cells"]
    launches = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(launches) + " |", "| --- |" + " --: |" * len(launches)]
    notes: list[str] = []
    for row, values in cells.items():
        shown = []
        for value in values.values():
            if isinstance(value, float):
                shown.append(f"{value:.0e}" + ("" if agrees(row, value) else " (!)"))
            else:
                notes += [] if value in notes else [value]
                shown.append(f"[{notes.index(value) + 1}]")
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *(f"[{n}] {note}  " for n, note in enumerate(notes, 1))]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    parser.add_argument("--only", default="", help="launches whose names begin so; the rest from --out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = table(tuple(x for x in LAUNCHES if x.name.startswith(given.only)), Path(folder))
    if given.only and given.out.with_suffix(".json").exists():
        known = json.loads(given.out.with_suffix(".json").read_text())["cells"]
        found["cells"] = {row: known.get(row, {}) | new for row, new in found["cells"].items()}
    write_text(given.out.with_suffix(".json"), json.dumps(found, indent=1))
    write_text(given.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
