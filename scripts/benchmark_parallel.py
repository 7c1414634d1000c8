"""What several processes cost and bring on this machine: building a cache, a step of stage 3, a checkpoint.

python scripts/benchmark_parallel.py --out docs/results/parallel-speed        writes .json and .md; minutes on two cores

One thread a process throughout. Give it a quiet machine: the figures are medians, but cores must be free.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BUILT = 256  # instances of the cache that is built
RUN = [
    "run.trackers=[]",
    "cotrain.epochs=1",
    "specialise.epochs=1",
    "alone.enabled=false",
    "run.checkpoint_seconds=1e9",
]
VARIANTS = ("whole", "no looks at each other", "no gradients sent")


# in a process of ours


def build(out: Path) -> None:
    """Time the table of av-mnist's specialised teachers over random data."""
    import torch

    from mstdistill import ranks
    from mstdistill.config import load
    from mstdistill.data.feeding.loader import Loader
    from mstdistill.data.sources.python import DatasetSplit
    from mstdistill.engine.launch import start
    from mstdistill.engine.progress import Screen
    from mstdistill.material import Material
    from mstdistill.teachers.cache_shards import build_cache
    from mstdistill.teachers.ensemble import Ensemble
    from mstdistill.teachers.mask import plan_mask
    from mstdistill.teachers.tap import discover

    class Noise(torch.utils.data.Dataset[dict[str, Any]]):
        def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
            self.values = {name: torch.randn(64, *shape) for name, shape in shapes.items()}

        def __len__(self) -> int:
            return BUILT

        def __getitem__(self, at: int) -> dict[str, Any]:
            return {**{name: x[at % 64] for name, x in self.values.items()}, "label": at % 10}

    start()
    torch.manual_seed(0)
    material = Material(load("av-mnist"))
    _, teachers = material.networks(Screen(quiet=True))
    shapes = {name: tuple(n for n in shape if n is not None) for name, shape in material.task.modalities.items()}
    split = DatasetSplit(Noise(shapes))
    loader = Loader(split, list(shapes), 32)
    few = loader.first(4).inputs
    masks = []
    for teacher in teachers:
        found = discover(teacher.module, few, teacher.modalities, teacher.taps, teacher.name)
        masks.append([plan_mask(tap, found[tap], hidden=12).build() for tap in teacher.taps])
    ensemble = Ensemble(teachers, masks).eval()
    with torch.no_grad():
        row = ensemble(few)  # and the check of the first batch
    ranks.wait()
    began = time.perf_counter()
    build_cache(out / "cache", "a", lambda b: ensemble(b.inputs), loader, row.shape[1:], torch.device("cpu"))
    report(out, {"seconds": time.perf_counter() - began})


def step(out: Path, variant: str, batch: int) -> None:
    """Time stage 3's steps of av-digits."""
    from mstdistill import ranks
    from mstdistill.config import load
    from mstdistill.engine import loop
    from mstdistill.engine.progress import Screen
    from mstdistill.pipeline import train

    if variant != VARIANTS[0]:
        loop.ranks = type("Quiet", (), {**vars(ranks), "any_rank": staticmethod(lambda flag, device: flag)})  # type: ignore[assignment]
        loop.Trainer.asked = lambda self, number: 0  # type: ignore[method-assign]
    if variant == VARIANTS[2]:
        from contextlib import nullcontext

        from mstdistill.engine.joined import Joined

        Joined.around = lambda self, closes: self.accelerator.no_sync(self.module) if closes else nullcontext()  # type: ignore
    times: list[float] = []
    saves: list[float] = []
    save = loop._Fitting._save

    def timed(self: Any) -> None:
        began = time.perf_counter()
        save(self)
        saves.append(time.perf_counter() - began)

    loop._Fitting._save = timed  # type: ignore[method-assign]
    recipe = load("av-digits", [*RUN, "distill.epochs=8", f"batch_size={batch}", "run.checkpoint_steps=11"])
    train(recipe, out / "run", Screen(quiet=True), lambda stage, n, parts: times.append(time.perf_counter()))
    steps = [b - a for a, b in itertools.pairwise(times)]
    report(out, {"step": statistics.median(steps), "save": statistics.median(saves), "saves": len(saves)})


def save_large(out: Path) -> None:
    """Time a checkpoint of 100 million parameters with Adam's moments: what blocks, and all of it."""
    import torch

    from mstdistill.engine.checkpoint import CheckpointStore

    parts = {name: {f"{n}": torch.randn(10_000_000) for n in range(10)} for name in ("model", "exp_avg", "exp_avg_sq")}
    store = CheckpointStore(out / "checkpoints", "a")
    began = time.perf_counter()
    copied = {name: {key: x.to("cpu", copy=True) for key, x in group.items()} for name, group in parts.items()}
    store.save(1, copied, {})
    blocked = time.perf_counter() - began
    store.finish()
    report(out, {"blocked": blocked, "written": time.perf_counter() - began, "gigabytes": 1.2})


def report(out: Path, figures: dict[str, float]) -> None:
    rank = os.environ.get("RANK", "0")
    (out / f"figures-{rank}.json").write_text(json.dumps(figures))


# the measurements


def measure(folder: Path, name: str, words: list[str], processes: int, joined: bool = True,
            ready: Path | None = None) -> list[dict[str, float]]:  # fmt: skip
    """Figures of each process that ran a function of this file."""
    places = [folder / name] if joined else [folder / f"{name}-{number}" for number in range(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = []
    for place in places:
        place.mkdir(parents=True)
        if ready is not None:
            shutil.copytree(ready / "run", place / "run", ignore=shutil.ignore_patterns("distill", "binding.json"))
        program = [__file__, "--worker", words[0], "--place", str(place), *words[1:]]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        started.append(subprocess.Popen([sys.executable, *(launcher if joined and processes > 1 else []), *program],
                                        env=env, stdout=subprocess.DEVNULL))  # fmt: skip
    assert all(process.wait() == 0 for process in started), name
    return [json.loads(path.read_text()) for place in places for path in sorted(place.glob("figures-*.json"))]


def figures(folder: Path) -> dict[str, Any]:
    build_seconds = {
        n: statistics.median(max(f["seconds"] for f in measure(folder, f"build-{n}-{again}", ["build"], n))
                             for again in range(3)) for n in (1, 2)
    }  # fmt: skip
    first = measure(folder, "ready", ["step"], 1)
    ready = folder / "ready"
    found: dict[str, Any] = {"build": build_seconds, "build_speedup": build_seconds[1] / build_seconds[2]}
    alone = [first[0], *measure(folder, "alone", ["step"], 1, ready=ready)]
    apart = measure(folder, "apart", ["step"], 2, joined=False, ready=ready)
    found["one process"] = statistics.median(f["step"] for f in alone)
    found["two that don't know of each other"] = statistics.median(f["step"] for f in apart)
    for variant in reversed(VARIANTS):
        both = measure(folder, variant.replace(" ", "-"), ["step", "--variant", variant], 2, ready=ready)
        found[variant] = statistics.median(f["step"] for f in both)
    found["save"] = {"alone": alone[-1]["save"], "two": max(f["save"] for f in both)}
    found["save_large"] = measure(folder, "save", ["save_large"], 1)[0]
    return found


def markdown(found: dict[str, Any]) -> str:
    ms = {key: value * 1e3 for key, value in found.items() if isinstance(value, float) and key != "build_speedup"}
    large = found["save_large"]
    base = ms["two that don't know of each other"]
    rows = [
        ("one process, 64 instances", ms["one process"], 0.0),
        ("two at once that don't know of each other, 64 each", base, base - ms["one process"]),
        ("two under DDP, gradients not sent", ms[VARIANTS[2]], ms[VARIANTS[2]] - base),
        ("... and sent", ms[VARIANTS[1]], ms[VARIANTS[1]] - ms[VARIANTS[2]]),
        ("... and looks at each other's losses and signals: a whole step", ms["whole"], ms["whole"] - ms[VARIANTS[1]]),
    ]
    lines = ["| step of stage 3, av-digits, image student | ms | added |", "| --- | --: | --: |"]
    lines += [f"| {name} | {value:.2f} | {more:+.2f} |" for name, value, more in rows]
    build_one, build_two = (found["build"][n] if n in found["build"] else found["build"][str(n)] for n in (1, 2))
    lines += [
        "", "| | figure |", "| --- | --: |",
        f"| the cache of av-mnist's teachers, {BUILT} instances: one process | {build_one:.1f} s |",
        f"| two processes | {build_two:.1f} s, {found['build_speedup']:.2f} times as fast |",
        f"| a checkpoint of av-digits blocks a step for | {found['save']['alone'] * 1e3:.1f} ms |",
        f"| a checkpoint of 100 million parameters with Adam's state ({large['gigabytes']} GB) blocks for "
        f"| {large['blocked']:.2f} s, is on disk after {large['written']:.1f} s |",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="without a suffix")
    parser.add_argument("--worker", choices=("build", "step", "save_large"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--variant", default=VARIANTS[0], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker == "build":
        build(given.place)
    elif given.worker == "step":
        step(given.place, given.variant, 64)
    elif given.worker == "save_large":
        save_large(given.place)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = figures(Path(folder))
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=1))
        given.out.with_suffix(".md").write_text(markdown(found))
        print(markdown(found))


if __name__ == "__main__":
    main()
