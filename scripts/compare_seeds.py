"""Both directions of a recipe over several seeds: the distilled student against the student alone, paired by seed.

    python scripts/compare_seeds.py av-digits --seeds 0 1 2 3 4 --out benchmarks/av-digits

Both see the same number of epochs in all and are selected on validation in the same way; test figures are reported.
Writes comparison.json, comparison.md and, where matplotlib is installed, comparison.svg. Finished seeds are not run
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mstdistill.suite.stats import spread


def one_run(recipe: str, target: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """A run's summary; an unfinished one is continued."""
    out = folder / f"{target}-seed{seed}"
    if not (out / "summary.json").exists():
        words = ["train", recipe, f"target={target}", f"seed={seed}", "run.trackers=[]", *overrides, "--out", str(out)]
        subprocess.run([sys.executable, "-m", "mstdistill", *words], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Test accuracies by network."""
    return {entry["name"]: entry["test"]["accuracy"] for entry in summary["networks"]}


def describe(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation and half of the 95 % interval of the mean."""
    found = spread(values)
    alone = found.count < 2  # one seed has no spread
    return {"mean": found.mean, "sd": 0.0 if alone else found.deviation, "half95": 0.0 if alone else found.half}


def compare(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Each network over the seeds, and the paired difference of the two students."""
    networks = {name: describe([run[name] for run in runs]) for name in runs[0]}
    gains = [run["distilled student"] - run["student alone"] for run in runs]
    return {"networks": networks, "gain": describe(gains), "gains": gains, "better": sum(g > 0 for g in gains)}


def markdown(found: dict[str, Any], seeds: list[int]) -> str:
    """The table of the README."""
    lines = [f"Test accuracy in %, mean ± standard deviation over seeds {', '.join(map(str, seeds))}.", "",
             "| student sees | student alone | distilled student | paired difference [95 % interval] | better in | "
             "teachers |", "| --- | --: | --: | --: | --: | --- |"]  # fmt: skip
    for target, result in found.items():
        own = {name: f"{100 * f['mean']:.1f} ± {100 * f['sd']:.1f}" for name, f in result["networks"].items()}
        gain, n = result["gain"], len(result["gains"])
        low, high = 100 * (gain["mean"] - gain["half95"]), 100 * (gain["mean"] + gain["half95"])
        teachers = ", ".join(f"{name[8:]} {text}" for name, text in own.items() if name.startswith("teacher"))
        lines.append(
            f"| {target} | {own['student alone']} | **{own['distilled student']}** | {100 * gain['mean']:+.1f} "
            f"[{low:+.1f}, {high:+.1f}] | {result['better']} of {n} | {teachers} |"
        )
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Every seed's two students, joined by a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mstdistill"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.2), squeeze=False, layout="constrained")
    for axis, (target, result) in zip(axes[0], found.items(), strict=True):
        for run in result["runs"]:
            pair = [100 * run["student alone"], 100 * run["distilled student"]]
            axis.plot([0, 1], pair, color="#9aa5b1", linewidth=1, marker="o", markersize=4, zorder=1)
        means = [100 * result["networks"][name]["mean"] for name in ("student alone", "distilled student")]
        axis.plot([0, 1], means, color="#0b6e4f", linewidth=3, marker="o", markersize=8, zorder=2, label="mean")
        axis.set_xticks([0, 1], ["alone", "distilled"])
        axis.set_xlim(-0.3, 1.3)
        axis.set_title(f"student sees {target}", fontsize=10)
        axis.set_ylabel("test accuracy, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="settings, as key=value")
    parser.add_argument("--targets", nargs="+", default=["image", "audio"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="where the runs go")
    parser.add_argument("--out", type=Path, required=True, help="where the comparison goes")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for target in arguments.targets:
        runs = []
        for seed in arguments.seeds:
            runs.append(figures(one_run(arguments.recipe, target, seed, arguments.runs, arguments.overrides)))
            print(target, seed, {name: round(value, 4) for name, value in runs[-1].items()}, flush=True)
        found[target] = {**compare(runs), "runs": runs}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "comparison.json").write_text(json.dumps({"seeds": arguments.seeds, **found}, indent=1) + "\n")
    table = markdown(found, arguments.seeds)
    (arguments.out / "comparison.md").write_text(table)
    try:
        plot(found, arguments.out / "comparison.svg")
    except ImportError:
        print("no picture: pip install matplotlib")
    print(table)


if __name__ == "__main__":
    main()
