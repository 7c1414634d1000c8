"""Speed and memory against the released scheme, as ratios measured in one run.

    python scripts/benchmark.py [--quick] [--out benchmarks/cpu.json]

Shapes are those of AV-MNIST (image 1x28x28, audio 1x112x112), instances random: time does not depend on them. Each part
runs in a process of its own, so that its peak memory is its own. The released scheme's whole run is its measured time
per step of each stage times the number of steps: it is not run to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_augmentation

BATCH, INSTANCES, EPOCHS, FACTOR = 64, 2000, (10, 2, 20), 16


def peak_gb() -> float:
    """This process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that doesn't count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_batch(batch: int = BATCH) -> tuple[dict[str, Any], Any]:
    """A batch of AV-MNIST's shapes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = {"image": torch.rand(batch, 1, 28, 28, generator=generator),
              "audio": torch.rand(batch, 1, 112, 112, generator=generator)}  # fmt: skip
    return inputs, torch.randint(10, (batch,), generator=generator)


def released(target: str, repeats: int) -> dict[str, float]:
    """Seconds a step of the released scheme, and its peak memory."""
    from released_scheme import Released

    scheme = Released(target, FACTOR)
    inputs, label = random_batch()
    steps = {"cotrain": scheme.cotrain_step, "specialise": scheme.specialise_step,
             "specialise_valid": scheme.specialise_valid, "distill": scheme.distill_step,
             "student_valid": scheme.student_valid}  # fmt: skip
    found = {name: median_seconds(partial(step, inputs, label), repeats) for name, step in steps.items()}
    return {**found, "peak_gb": peak_gb()}


def random_data(folder: Path, instances: int) -> Path:
    """A prepared folder of AV-MNIST's shapes."""
    import numpy as np

    from mstdistill.data.prepared import store

    generator = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        "image": generator.random((instances, 1, 28, 28), dtype=np.float32),
        "audio": generator.random((instances, 1, 112, 112), dtype=np.float32).astype(np.float16),
        "label": generator.integers(0, 10, instances),
    }
    store.write(folder / "data", {"all": columns}, {"task": "av-mnist", "order": "random"})
    return folder / "data"


def ours(target: str, epochs: tuple[int, int, int], instances: int) -> dict[str, Any]:
    """A whole run of this project on random data of AV-MNIST's shapes, its steps and its peak memory."""
    import numpy as np

    from mstdistill.config import load
    from mstdistill.engine.progress import Screen
    from mstdistill.pipeline import train

    with tempfile.TemporaryDirectory() as scratch:
        data = random_data(Path(scratch), instances)
        base = [f"target={target}", f"data.dir={data}", f"batch_size={BATCH}", "run.trackers=[]",
                f"mask.hidden_dim_factor={FACTOR}", "alone.enabled=false", f"cotrain.epochs={epochs[0]}",
                f"specialise.epochs={epochs[1]}", f"distill.epochs={epochs[2]}"]  # fmt: skip
        times: dict[str, list[float]] = {}

        def observe(stage: str, step: int, parts: Any) -> None:
            times.setdefault(stage, []).append(time.perf_counter())

        start = time.perf_counter()
        train(load("av-mnist", base), Path(scratch) / "run", Screen(quiet=True), observe)
        seconds = time.perf_counter() - start
        stages = {name: json.loads((Path(scratch) / "run" / name / "result.json").read_text())["seconds"]
                  for name in ("cotrain", "specialise", "distill")}  # fmt: skip
        steps = {name: statistics.median(np.diff(stamps)) for name, stamps in times.items()}
        result = {"seconds": seconds, "stages": stages, "step": steps, "peak_gb": peak_gb()}
        result |= cache_cost(load("av-mnist", base), Path(scratch))
        short = [*base, "data.limit=400", "cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=1"]
        result["flops"] = flops_of_steps(load("av-mnist", short), Path(scratch) / "counted")
        result["matrix_product"] = matrix_product()
    return result


def flops_of_steps(recipe: Any, folder: Path) -> dict[str, float]:
    """Operations of a step of each stage in matrix products and convolutions, counted where they are called."""
    from torch.utils.flop_counter import FlopCounterMode

    from mstdistill.engine.progress import Screen
    from mstdistill.pipeline import train

    counts: dict[str, list[int]] = {}
    with FlopCounterMode(display=False) as counter:

        def observe(stage: str, step: int, parts: Any) -> None:
            counts.setdefault(stage, []).append(counter.get_total_flops())

        train(recipe, folder, Screen(quiet=True), observe)
    return {stage: float(seen[2] - seen[1]) for stage, seen in counts.items()}


def matrix_product() -> float:
    """Operations a second of the machine's own product of float32 matrices of 2,048 rows and columns."""
    import torch

    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b), 15)


def cache_cost(recipe: Any, scratch: Path) -> dict[str, float]:
    """Seconds to build the teacher cache, and of one live epoch over the same instances (shared prefixes)."""
    from mstdistill.engine.launch import start
    from mstdistill.engine.loop import Trainer
    from mstdistill.engine.progress import Screen
    from mstdistill.experiment import Experiment
    from mstdistill.material import Material
    from mstdistill.stages.distill import Distill
    from mstdistill.teachers.tap import freeze

    seconds = {}
    for mode in ("always", "never"):
        recipe.distill.cache.mode = mode
        screen = Screen(quiet=True)
        material = Material(recipe)
        student, teachers = material.networks(screen)
        trainer = Trainer(start(), recipe.run, 0, screen)
        experiment = Experiment(recipe, material.task, material.splits(screen), student, teachers, scratch / mode,
                                trainer)  # fmt: skip
        ensemble = experiment.build_ensemble("independent")
        freeze(ensemble)
        begun = time.perf_counter()
        stage = Distill(experiment, ensemble)
        if mode == "never":
            begun = time.perf_counter()
            for batch in experiment.feeds.loader("train", stage.modalities).epoch():
                parts = stage.losses(stage.module, batch.to(trainer.accelerator.device), 0)
                parts["loss"].backward()
        seconds[mode] = time.perf_counter() - begun
    return {"cache_build": seconds["always"], "live_epoch": seconds["never"]}


def import_seconds(module: str) -> float:
    """Seconds to import a module in a new process, median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def av_digits(target: str) -> float:
    """Seconds of the default av-digits run, comparisons included, data made anew."""
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "MSTDISTILL_HOME": f"{scratch}/home"}
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "mstdistill",
            "train",
            "av-digits",
            f"target={target}",
            "--out",
            f"{scratch}/run",
        ]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def apart(call: str) -> Any:
    """A part's result, from a process of its own."""
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import benchmark; " \
           f"print(json.dumps(benchmark.{call}))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(target: str, repeats: int, epochs: tuple[int, int, int], instances: int) -> dict[str, Any]:
    """All figures of one direction."""
    theirs, own = apart(f"released({target!r}, {repeats})"), apart(f"ours({target!r}, {epochs}, {instances})")
    train, valid = -(-instances * 6 // 10 // BATCH), -(-instances * 2 // 10 // BATCH)
    whole = (
        epochs[0] * (train * theirs["cotrain"] + valid * theirs["student_valid"])
        + epochs[1] * (train * theirs["specialise"] + valid * theirs["specialise_valid"])
        + epochs[2] * (train * theirs["distill"] + valid * theirs["student_valid"])
    )
    return {
        "released": theirs,
        "ours": own,
        "released_whole_run_seconds": whole,
        "step_ratio": theirs["distill"] / own["step"]["distill"],
        "time_ratio": whole / own["seconds"],
        "memory_ratio": theirs["peak_gb"] / own["peak_gb"],
        "cache_build_over_live_epoch": own["cache_build"] / own["live_epoch"],
        "cache_build_over_released_epoch": own["cache_build"] / (train * theirs["distill"]),
    }


def share(found: dict[str, Any], stage: str) -> float:
    """Of the machine's own matrix product, what a stage's steps reach."""
    own = found["ours"]
    return float(own["flops"][stage] / own["step"][stage] / own["matrix_product"])


def _percent(stage: str, found: dict[str, Any]) -> str:
    return f"{share(found, stage):.0%}"


def markdown(found: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = ["| what | image student | audio student |", "| --- | --: | --: |"]

    def row(title: str, text: Callable[[dict[str, Any]], str]) -> None:
        rows.append(f"| {title} | {text(found['image'])} | {text(found['audio'])} |")

    row("stage-3 step, released scheme", lambda f: f"{1e3 * f['released']['distill']:.0f} ms")
    row("stage-3 step, here (cached)", lambda f: f"{1e3 * f['ours']['step']['distill']:.2f} ms")
    row("**ratio**", lambda f: f"**{f['step_ratio']:.1f}x**")
    row("building the cache / one live epoch here", lambda f: f"{f['cache_build_over_live_epoch']:.2f}")
    row("building the cache / one epoch, released scheme", lambda f: f"{f['cache_build_over_released_epoch']:.2f}")
    row(
        "stage-2 step, released / here",
        lambda f: f"{f['released']['specialise'] / f['ours']['step']['specialise']:.1f}x",
    )
    row("whole run, released scheme (from its steps)", lambda f: f"{f['released_whole_run_seconds'] / 60:.1f} min")
    row("whole run, here", lambda f: f"{f['ours']['seconds'] / 60:.1f} min")
    row("**ratio**", lambda f: f"**{f['time_ratio']:.1f}x**")
    for number, stage in enumerate(("cotrain", "specialise", "distill"), start=1):
        row(
            f"stage {number}, share of the machine's own matrix product",
            partial(_percent, stage),
        )
    row("peak memory, released scheme", lambda f: f"{f['released']['peak_gb']:.2f} GB")
    row("peak memory, here", lambda f: f"{f['ours']['peak_gb']:.2f} GB")
    row("**ratio**", lambda f: f"**{f['memory_ratio']:.1f}x**")
    row("av-digits, whole default run", lambda f: f"{f['av_digits_seconds']:.0f} s")
    extra = found["import_both"] - found["import_torch"]
    rows += ["", benchmark_augmentation.markdown(found["augmentation"])]
    return "\n".join(rows) + f"\n\n`import mstdistill` takes {extra:.2f} s beyond `import torch`."


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer instances and repeats: a smoke test")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, the table beside it")
    arguments = parser.parse_args()
    repeats, epochs, instances = (2, (1, 1, 2), 400) if arguments.quick else (7, EPOCHS, INSTANCES)
    found: dict[str, Any] = {
        "batch": BATCH,
        "instances": instances,
        "epochs": epochs,
        "hidden_dim_factor": FACTOR,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }
    found["import_torch"], found["import_both"] = import_seconds("torch"), import_seconds("torch, mstdistill")
    for target in ("image", "audio"):
        found[target] = compare(target, repeats, epochs, instances)
        found[target]["av_digits_seconds"] = av_digits(target)
    found["augmentation"] = benchmark_augmentation.every()
    table = markdown(found)
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1))
        arguments.out.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
