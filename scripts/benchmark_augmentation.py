"""What augmentation costs a step of stage 3 with cached teachers, as ratios measured in one run.

    python scripts/benchmark_augmentation.py [--out docs/results/augmentation-cpu.json]

A plain step, an augmented one and the augmentation alone take turns on the same batches of AV-MNIST's shapes. What a
step costs beside the augmentation itself is the issue: teachers must not run again. Times are the process's own on its
processors: others that run beside it don't count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ("image", "audio")
CHANGES = {
    "image": "[{crop: 3}, {turn: 10}, {erase: 0.25}, {noise: 0.05}]",
    "audio": "[{mask_frequency: 16}, {mask_time: 16}, {shift: 0.1}, {noise: 0.05}]",
}
INSTANCES, STEPS = 640, 30


def measure(target: str, mixup: bool, instances: int = INSTANCES, steps: int = STEPS) -> dict[str, float]:
    """Median processor seconds of a plain step, of an augmented one and of the augmentation alone."""
    import torch
    from benchmark import BATCH, FACTOR, random_data

    from mstdistill.config import load
    from mstdistill.engine.launch import start
    from mstdistill.engine.loop import Trainer
    from mstdistill.engine.progress import Screen
    from mstdistill.experiment import Experiment
    from mstdistill.material import Material
    from mstdistill.stages.distill import Distill
    from mstdistill.teachers.tap import freeze

    with tempfile.TemporaryDirectory() as scratch:
        words = [f"target={target}", f"data.dir={random_data(Path(scratch), instances)}", f"batch_size={BATCH}",
                 "run.trackers=[]", f"mask.hidden_dim_factor={FACTOR}", "alone.enabled=false",
                 f"augment.modalities={{{target}: {CHANGES[target]}}}"]  # fmt: skip
        recipe = load("av-mnist", [*words, "augment.mixup=0.2"] if mixup else words)
        screen, material = Screen(quiet=True), Material(recipe)
        student, teachers = material.networks(screen)
        trainer = Trainer(start(), recipe.run, 0, screen)
        folder, splits = Path(scratch) / "run", material.splits(screen)
        experiment = Experiment(recipe, material.task, splits, student, teachers, folder, trainer)
        ensemble = experiment.build_ensemble("independent")
        freeze(ensemble)
        stage = Distill(experiment, ensemble)
        stage.module.train()
        optimizer = torch.optim.Adam([p for p in stage.module.parameters() if p.requires_grad], 1e-4)
        varied = (target,)
        augmented = experiment.feeds.loader("train", stage.modalities, recipe.distill, shuffle=True, varied=varied)
        plain = experiment.feeds.loader("train", stage.modalities, recipe.distill, shuffle=True, varied=varied)
        plain.vary, plain.pairs, device = None, None, trainer.accelerator.device

        def step(loader: Any, batch: Any) -> None:
            losses = stage.losses(stage.module, loader.varied(batch.to(device), 0), 0)
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        pairs = list(zip(plain.epoch(0), augmented.epoch(0), strict=True))
        works: dict[str, Callable[[Any, Any], object]] = {
            "plain": lambda one, other: step(plain, one),
            "augmented": lambda one, other: step(augmented, other),
            "augmentation": lambda one, other: augmented.varied(other.to(device), 0),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for number in range(steps + 3):
            for name, work in works.items():
                begun = time.process_time()
                work(*pairs[number % len(pairs)])
                if number >= 3:
                    times[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(found: dict[str, float]) -> dict[str, float]:
    """Of the plain step: the augmented one, the augmentation alone, and the step beside it."""
    plain, whole, alone = (found[name] for name in ("plain", "augmented", "augmentation"))
    return {"step": whole / plain, "augmentation": alone / plain, "beside": (whole - alone) / plain}


def markdown(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table."""
    lines = ["| stage-3 step, cached teachers | plain | augmentation | augmented | of the plain one | beside the "
             "augmentation |", "| --- | --: | --: | --: | --: | --: |"]  # fmt: skip
    for name, times in found.items():
        of, ms = ratios(times), {key: f"{1e3 * value:.2f} ms" for key, value in times.items()}
        lines.append(f"| {name} | {ms['plain']} | {ms['augmentation']} | {ms['augmented']} | {of['step']:.2f}x | "
                     f"**{of['beside']:.2f}x** |")  # fmt: skip
    return "\n".join(lines)


def apart(target: str, mixup: bool) -> dict[str, float]:
    """`measure`, in a process of its own."""
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); " \
           f"from benchmark_augmentation import measure; print(json.dumps(measure({target!r}, {mixup})))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def every() -> dict[str, dict[str, float]]:
    """Figures of each student, without and with mixup."""
    return {f"{target} student{', mixup' * mixup}": apart(target, mixup) for target in TARGETS
            for mixup in (False, True)}  # fmt: skip


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, the table beside it")
    arguments = parser.parse_args()
    found = every()
    print(markdown(found))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {name: {**times, "ratios": ratios(times)} for name, times in found.items()}
        arguments.out.write_text(json.dumps({"changes": CHANGES, "students": content}, indent=1))
        arguments.out.with_suffix(".md").write_text(markdown(found) + "\n")


if __name__ == "__main__":
    main()
