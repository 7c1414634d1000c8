"""What a run's page costs: the seconds that the run spent on its pages, beside all that it took; and whether its
numbers are those of a run without.

python scripts/measure_page.py --out docs/results/page.json          (ten minutes on two cores)

Runs with and without a page take turns, each in a process of its own; the data are made before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measured(run: Path, page: bool, settings: list[str]) -> dict[str, Any]:
    """A run's seconds, its own and its process's; what it spent on pages; its numbers and its student's weights."""
    command = [
        sys.executable,
        "-m",
        "mstdistill",
        "train",
        "av-digits",
        "--out",
        str(run),
        f"run.page={str(page).lower()}",
    ]
    started = time.perf_counter()
    subprocess.run([*command, *settings], check=True, capture_output=True)
    taken = time.perf_counter() - started
    summary = json.loads((run / "summary.json").read_text())
    report = json.loads((run / "report.json").read_text()) if page else {}
    return {
        "process": round(taken, 2), "run": summary["seconds"], "page": report.get("page_seconds", 0.0),
        "left out": report.get("left_out", []), "networks": summary["networks"],
        "student": hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("page.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*", help="of the runs, as key=value")
    options = parser.parse_args()
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MSTDISTILL_HOME"] = scratch
        subprocess.run([sys.executable, "-m", "mstdistill", "prepare", "av-digits"], check=True, capture_output=True)
        for number in range(options.rounds):
            for page in (True, False) if number % 2 == 0 else (False, True):
                run = measured(Path(scratch) / f"{number}-{page}", page, options.settings)
                found[page].append(run)
                print(
                    f"page {page!s:5}  process {run['process']:6.2f} s  run {run['run']:6.2f} s  page {run['page']:.3f}"
                )
    numbers = {json.dumps([run["networks"], run["student"]]) for runs in found.values() for run in runs}
    kept = ("process", "run", "page", "left out")
    figures = {
        "command": " ".join(["train", "av-digits", *options.settings]),
        "with": [{key: run[key] for key in kept} for run in found[True]],
        "without": [{key: run[key] for key in kept[:2]} for run in found[False]],
        "share": round(statistics.median(run["page"] / run["run"] for run in found[True]), 4),
        "same numbers": len(numbers) == 1,
    }
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"pages took {100 * figures['share']:.2f} % of the run; same numbers: {figures['same numbers']}")


if __name__ == "__main__":
    main()
