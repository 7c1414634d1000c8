"""How good a plan is: real steps on this CPU against what `mstdistill plan --gpu cpu` says of them.

Memory is what torch's CPU allocator hands out, by the events of `torch.profiler`, in a process that has nothing else to
do: the most bytes alive within a step, of the steps that start with the optimiser's state in place. It is exact where
the peak of the resident set is not (freed blocks stay with the process); that is measured too, in a run before it
without a profiler, which also takes the times. What NumPy allocates (tables of logits) is in neither account. Beside
the total stands what a step itself allocates: the total may be made of weights and data, which are easy to foresee.

    python scripts/check_plan.py --out docs/results/planning-cpu.json --docs docs/planning.md
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
from mstdistill.data.prepared.store import write
from mstdistill.engine.checkpoint import CheckpointStore
from mstdistill.engine.progress import Screen
from mstdistill.experiment import Experiment
from mstdistill.planning.figures import figures_of
from mstdistill.planning.plan import Request, make_plan
from mstdistill.planning.subject import PUBLISHED, subject_of

# By name: a recipe, its batch size and other settings.
CASES = {
    f"{recipe}, {target}, {', '.join([f'batch {batch}', *more])}": (recipe, batch, [f"target={target}", *more])
    for recipe, target, batch, *more in (
        ("av-digits", "image", 64), ("av-digits", "image", 1024), ("av-digits", "audio", 64),
        ("av-digits", "audio", 1024), ("av-digits", "image", 256, "distill.cache.mode=never", "routing.rule=soft"),
        ("av-digits", "image", 256, "distill.cache.mode=never"), ("crisismmd-v2", "image", 64),
        ("av-mnist", "image", 64), ("av-mnist", "audio", 32),
    )
}  # fmt: skip
QUIET = ["run.trackers=[]", "run.checkpoint_seconds=1000000"]
TARGET = 0.15
# Tables lie in NumPy's memory; no checkpoint is written (see `marked`).
ELSEWHERE = ("cache", "runtime", "checkpoint")
MARKS = ("<!-- measured: scripts/check_plan.py --docs -->", "<!-- end -->")


def epochs(number: int) -> list[str]:
    """Settings of a short run."""
    return [*QUIET, *(f"{stage}.epochs={number}" for stage in ("cotrain", "specialise", "distill", "alone"))]


def random_data(recipe: str, batch: int, folder: Path) -> None:
    """Prepared data of a recipe's shapes, for two steps an epoch."""
    subject = subject_of(config.load(recipe))
    rows, random = -(-batch * 2 * 10 // 6), np.random.default_rng(0)
    stored = PUBLISHED[recipe][1]
    columns: dict[str, np.ndarray] = {
        name: random.random((rows, *kind.shape), dtype=np.float32).astype(stored[name][0])
        for name, kind in subject.columns.items()
    }
    columns["label"] = random.integers(0, subject.material.task.num_classes, rows)
    write(folder, {"all": columns}, {"task": recipe, "order": "random"})


@contextmanager
def marked(note: Any) -> Iterator[None]:
    """Within the block `note("begin", stage, rows)` is called before each loss, and no checkpoint is written: its
    thread frees what this one allocates, and the profiler sees one thread."""
    original, save = Experiment.train, CheckpointStore.save

    def train(self: Experiment, stage: Any, *args: Any, **kwargs: Any) -> Any:
        losses = stage.losses

        def noted(*inner: Any) -> Any:
            note("begin", stage.name, len(inner[1].index))
            return losses(*inner)

        stage.losses = noted
        try:
            return original(self, stage, *args, **kwargs)
        finally:
            del stage.losses  # a circle, which would keep the stage's networks for longer

    Experiment.train, CheckpointStore.save = train, lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Experiment.train, CheckpointStore.save = original, save  # type: ignore[method-assign]


def run_child(recipe: str, overrides: list[str], timed: bool) -> dict[str, Any]:
    """Short runs in this process: by stage `seconds` and `rss` of the first, if timed, `memory` of the second."""
    from mstdistill.pipeline import train

    def go(note: Any, number: int = 2) -> None:
        resolved = config.load(recipe, [*overrides, *epochs(number)])
        with tempfile.TemporaryDirectory() as folder, marked(note):
            train(resolved, Path(folder) / "run", Screen(quiet=True),
                  observe=lambda stage, number, _: note("end", stage, number))  # fmt: skip

    if not timed:
        return {"memory": _memory(go)}
    found = _seconds(go)
    if sum(found["seconds"].values()) < 1.0:  # a few steps tell more of their start than of themselves
        found["seconds"] = _seconds(lambda note: go(note, 12))["seconds"]
    return {**found, "memory": _memory(go)}


def _memory(go: Any) -> dict[str, list[int]]:
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


def child(recipe: str, overrides: list[str], timed: bool) -> dict[str, Any]:
    """`run_child` in a process of its own."""
    command = [sys.executable, __file__, "--child" if timed else "--memory-child", recipe, *overrides]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(name: str, timed: bool = True) -> list[dict[str, Any]]:
    """A row for each stage of a case; untimed: of its memory alone."""
    recipe, batch, others = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*others, f"batch_size={batch}", f"data.dir={folder}/data"]
        random_data(recipe, batch, Path(folder) / "data")
        plan = make_plan(Request(config.load(recipe, [*overrides, *epochs(2)]), "cpu"))
        stages = figures_of(plan, recipe, overrides)["engines"]["single process"]["stages"]
        found = child(recipe, overrides, timed)
    rows = []
    for stage, figures in stages.items():
        needs, step = figures["memory"], figures["step"]
        predicted = needs["total"] - sum(needs[key] for key in ELSEWHERE)
        within = needs["gradients"] + needs["activations"] + needs["workspace"]
        row = {
            "case": name, "stage": stage, "predicted_bytes": predicted, "measured_bytes": found["memory"][stage][0],
            "error": predicted / found["memory"][stage][0] - 1, "predicted_step_bytes": within,
            "measured_step_bytes": found["memory"][stage][1], "step_error": within / found["memory"][stage][1] - 1,
            "memory": needs,
        }  # fmt: skip
        if timed:
            seconds, measured = step["compute"] + step["optimiser"], found["seconds"][stage]
            row |= {"rss_over_baseline": found["rss"][stage], "predicted_seconds": seconds,
                    "measured_seconds": measured, "time_ratio": seconds / measured}  # fmt: skip
        rows.append(row)
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The text of docs/planning.md: a table, and what to make of it."""
    rows = found["rows"]
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
    ratios = sorted(row["time_ratio"] for row in rows)
    facts = ", ".join(f"{key} {value}" for key, value in found["facts"].items())
    return "\n".join([
        *lines, "",
        f"{found['within']} of {len(rows)} within {100 * found['target']:.0f} %; what a step allocates, "
        f"{sum(abs(row['step_error']) <= found['target'] for row in rows)}. Predicted over measured time: "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}. ({facts}.)",
    ])  # fmt: skip


def write_docs(path: Path, text: str) -> None:
    """Put the text between the marks of a page."""
    before, _, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"{path} has no marks: {' ... '.join(MARKS)}")
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    if sys.argv[1:2] in (["--child"], ["--memory-child"]):
        print(json.dumps(run_child(sys.argv[2], sys.argv[3:], sys.argv[1] == "--child")))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of every figure")
    parser.add_argument("--docs", type=Path, help="page to put the table in")
    parser.add_argument("--only", help="cases whose name holds this; the rest from --out")
    chosen = parser.parse_args()
    known = json.loads(chosen.out.read_text())["rows"] if chosen.only and chosen.out and chosen.out.exists() else []
    rows: list[dict[str, Any]] = []
    for name in CASES:
        if not chosen.only or chosen.only in name:
            started = time.perf_counter()
            rows += check(name)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        else:
            rows += [row for row in known if row["case"] == name]
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
             "processor": platform.processor() or platform.machine()}  # fmt: skip
    within = sum(abs(row["error"]) <= TARGET for row in rows)
    found = {"facts": facts, "target": TARGET, "within": within, "rows": rows}
    print(markdown(found))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.docs:
        write_docs(chosen.docs, markdown(found))


if __name__ == "__main__":
    main()
