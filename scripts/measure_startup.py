"""How long a person waits before anything happens: lists, refusals, and the first step of a run.

python scripts/measure_startup.py --out docs/results/startup.json          (two minutes)

Commands take turns with `import torch` alone in one run; medians. The data of av-digits are made before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = (
    ("--help",), ("tasks",), ("prepare", "av-mnist", "--help"), ("train", "av-digits", "--dry-run"),
    ("train", "av-digits", "sed=3"), ("train", "av-digits", "method=mst2"), ("taps", "CNN-J"), ("report", "nowhere"),
    ("check", "nowhere"), ("settings",), ("settings", "epochs"),
)  # fmt: skip
REFUSED = ("sed=3", "method=mst2", "CNN-J", "nowhere")
# Ends the process after the first optimiser step.
FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
from mstdistill.cli import main
main()
"""


def seconds(command: list[str], folder: str) -> float:
    """Of a process, from its start to its end: with 0, or 2 for what it refuses."""
    started = time.perf_counter()
    code = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    taken = time.perf_counter() - started
    if code not in (0, 2) or (code == 2) != (command[-1] in REFUSED):
        raise SystemExit(f"{command}: ended with {code}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    mstdistill = [sys.executable, "-m", "mstdistill"]
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MSTDISTILL_HOME"] = scratch
        subprocess.run([*mstdistill, "prepare", "av-digits"], check=True, capture_output=True)
        for number in range(options.rounds):
            what = {"import torch": [sys.executable, "-c", "import torch"]}
            what |= {f"mstdistill {' '.join(words)}": [*mstdistill, *words] for words in COMMANDS}
            run = ["train", "av-digits", "--out", f"{scratch}/run{number}"]
            what["train av-digits, to its first step"] = [sys.executable, "-c", FIRST_STEP, *run]
            for name, command in what.items():
                taken.setdefault(name, []).append(seconds(command, scratch))
    torch = statistics.median(taken["import torch"])
    medians = {name: statistics.median(times) for name, times in taken.items()}
    found = {name: {"seconds": round(t, 3), "of import torch": round(t / torch, 2)} for name, t in medians.items()}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, figures in found.items():
        print(f"{figures['seconds']:7.2f} s  {figures['of import torch']:5.2f}x  {name}")


if __name__ == "__main__":
    main()
