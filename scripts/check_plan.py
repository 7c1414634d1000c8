"""How good a plan is: real steps on this CPU against what `mstdistill plan --gpu cpu` says of them.

Memory is what torch's CPU allocator hands out, by the events of `torch.profiler`, in a process that has nothing else to
do: the most bytes alive within a step, of the steps that start with the optimiser's state in place. It is exact where
the peak of the resident set is not (freed blocks stay with the process); that is measured too, in a second process
without a profiler, which also takes the times. What NumPy allocates (tables of logits) is in neither account. Beside
the total stands what a step itself allocates: the total may be made of weights and data, which are easy to foresee.

    python scripts/check_plan.py --out docs/results/planning-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mstdistill import config
from mstdistill.data.store import write
from mstdistill.engine.progress import Screen
from mstdistill.experiment import Experiment
from mstdistill.planning.figures import figures_of
from mstdistill.planning.plan import Request, make_plan
from mstdistill.planning.subject import PUBLISHED, subject_of

# Names of cases: a recipe and its settings.
CASES = {
    f"{recipe}, {target}, batch {batch}": (recipe, [f"target={target}", f"batch_size={batch}"])
    for recipe, target, batch in (
        ("av-digits", "image", 64), ("av-digits", "image", 1024), ("av-digits", "audio", 64),
        ("av-digits", "audio", 1024), ("av-mnist", "image", 64), ("av-mnist", "image", 128), ("av-mnist", "audio", 64),
        ("crisismmd-v2", "image", 64),
    )
}  # fmt: skip
SHORT = ["cotrain.epochs=2", "specialise.epochs=2", "distill.epochs=2", "alone.epochs=2", "run.trackers=[]",
         "run.checkpoint_seconds=1000000"]  # fmt: skip
TARGET = 0.15
# Not torch's allocations: tables lie in NumPy's memory.
ELSEWHERE = ("cache", "runtime")


def random_data(recipe: str, batch: int, folder: Path) -> None:
    """Prepared data of a recipe's shapes, for three steps an epoch."""
    subject = subject_of(config.load(recipe))
    rows, random = batch * 5 + 5, np.random.default_rng(0)
    stored = PUBLISHED[recipe][1]
    columns: dict[str, np.ndarray] = {
        name: random.random((rows, *kind.shape), dtype=np.float32).astype(stored[name][0])
        for name, kind in subject.columns.items()
    }
    columns["label"] = random.integers(0, subject.material.task.num_classes, rows)
    write(folder, {"all": columns}, {"task": recipe})


@contextmanager
def marked(note: Any) -> Iterator[None]:
    """Within the block `note("begin", stage)` is called before each loss."""
    original = Experiment.train

    def train(self: Experiment, stage: Any, *args: Any, **kwargs: Any) -> Any:
        losses = stage.losses

        def noted(*inner: Any) -> Any:
            note("begin", stage.name, len(inner[1].index))
            return losses(*inner)

        stage.losses = noted
        return original(self, stage, *args, **kwargs)

    Experiment.train = train  # type: ignore[method-assign]
    try:
        yield
    finally:
        Experiment.train = original  # type: ignore[method-assign]


def run_child(mode: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """A short run in this process; by stage `memory`, or `seconds` and `rss`."""
    from mstdistill.pipeline import train

    resolved = config.load(recipe, [*overrides, *SHORT])
    with tempfile.TemporaryDirectory() as folder:

        def go(note: Any) -> None:
            with marked(note):
                train(resolved, Path(folder) / "run", Screen(quiet=True),
                      observe=lambda stage, number, _: note("end", stage, number))  # fmt: skip

        return _memory(go) if mode == "memory" else _seconds(go)


def _memory(go: Any) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile, record_function

    def note(*words: object) -> None:
        with record_function("plan " + " ".join(map(str, words))):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        go(note)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    alive, before, inside, fullest = 0, 0, False, 0
    best: dict[str, list[int]] = {}
    for event in events:
        name = event.name()
        if name == "[memory]":
            alive += event.nbytes()
            fullest = max(fullest, alive)
        elif name.startswith("plan begin"):
            inside, fullest, before = True, alive, alive
        elif name.startswith("plan end") and inside:
            _, _, stage, number = name.split()
            if int(number) > 0:  # from the second step on the optimiser has its state
                known = best.get(stage, [0, 0])
                best[stage] = [max(known[0], fullest), max(known[1], fullest - before)]
            inside = False
    return best


def _seconds(go: Any) -> dict[str, Any]:
    taken: dict[str, list[tuple[int, float]]] = {}
    highest: dict[str, float] = {}
    started: list[float] = []
    rows: list[int] = []
    baseline = _status("VmRSS")
    last = [""]

    def note(kind: str, stage: str, number: int) -> None:
        if stage != last[0]:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            last[0] = stage
        if kind == "begin":
            started[:], rows[:] = [time.perf_counter()], [number]
        else:
            highest[stage] = _status("VmHWM") - baseline
            taken.setdefault(stage, []).append((rows[0], time.perf_counter() - started[0]))

    go(note)
    seconds = {}
    for stage, found in taken.items():
        largest = max(rows for rows, _ in found)
        full = [took for rows, took in found if rows == largest]
        seconds[stage] = statistics.median(full[1:] or full)
    return {"seconds": seconds, "rss": highest}


def _status(key: str) -> float:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024.0 * int(line.split()[1])
    return float("nan")


def child(mode: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """`run_child` in a process of its own."""
    command = [sys.executable, __file__, "--child", mode, recipe, *overrides]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(name: str) -> list[dict[str, Any]]:
    """A row for each stage of a case."""
    recipe, overrides = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        if recipe != "av-digits":
            batch = int(overrides[-1].partition("=")[2])
            random_data(recipe, batch, Path(folder) / "data")
            overrides = [*overrides, f"data.dir={folder}/data"]
        plan = make_plan(Request(config.load(recipe, [*overrides, *SHORT]), "cpu"))
        stages = figures_of(plan, recipe, overrides)["engines"]["single process"]["stages"]
        found = child("memory", recipe, overrides)
        timed = child("time", recipe, overrides)
    rows = []
    for stage, figures in stages.items():
        needs, step = figures["memory"], figures["step"]
        predicted = needs["total"] - sum(needs[key] for key in ELSEWHERE)
        within = needs["gradients"] + needs["activations"] + needs["workspace"]
        seconds = step["compute"] + step["optimiser"]
        rows.append({
            "case": name, "stage": stage, "predicted_bytes": predicted, "measured_bytes": found[stage][0],
            "error": predicted / found[stage][0] - 1, "predicted_step_bytes": within,
            "measured_step_bytes": found[stage][1], "step_error": within / found[stage][1] - 1,
            "rss_over_baseline": timed["rss"][stage],
            "predicted_seconds": seconds, "measured_seconds": timed["seconds"][stage],
            "time_ratio": seconds / timed["seconds"][stage], "memory": needs,
        })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/planning.md."""
    lines = ["| case | stage | memory: predicted | measured | error | error of what a step allocates | "
             "time of a step: predicted | measured | ratio |",
             "| --- | --- | --: | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['stage']} | {row['predicted_bytes'] / 1e6:.2f} MB | "
            f"{row['measured_bytes'] / 1e6:.2f} MB | {100 * row['error']:+.1f} % | {100 * row['step_error']:+.1f} % | "
            f"{1e3 * row['predicted_seconds']:.2f} ms | {1e3 * row['measured_seconds']:.2f} ms | "
            f"{row['time_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(sys.argv[2], sys.argv[3], sys.argv[4:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of every figure")
    parser.add_argument("--only", help="cases whose name holds this")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in CASES:
        if not chosen.only or chosen.only in name:
            rows += check(name)
            print(f"{name}: done", file=sys.stderr, flush=True)
    within = sum(abs(row["error"]) <= TARGET for row in rows)
    print(markdown(rows))
    print(f"\n{within} of {len(rows)} within {100 * TARGET:.0f} %")
    if chosen.out:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
                 "processor": platform.processor() or platform.machine()}  # fmt: skip
        chosen.out.write_text(json.dumps({"facts": facts, "target": TARGET, "within": within, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
