"""Everything that the first hour on a GPU is for, in eight minutes; each stage leaves a result.

    python -m mstdistill.gpu_day --out DIR                    # what isn't done yet, in order
    python -m mstdistill.gpu_day --out DIR --only kernels     # one stage; may be repeated
    python -m mstdistill.gpu_day --out DIR --rehearse         # without a GPU: the same, of little, on the CPU

Kernels' stages need torch, Triton, NumPy and pytest; those that train need the whole package, and are skipped without.
Ends with 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import kernels, training
from .device import Device, gpu, rehearsal
from .page import outcome, page
from .stage import Stage, apart, done_before, here

_PACKAGE = ("accelerate", "datasets", "transformers", "pydantic", "sklearn", "typer")
STAGES = (
    Stage("kernels", "the kernels against float64", 95, ("pytest", "triton"), kernels.correctness),
    Stage("benchmarks", "the kernels against what else one could use", 120, ("triton",), kernels.benchmarks),
    Stage("tiles", "tiles tried, a launch table of the better ones", 75, ("triton",), kernels.tiles),
    Stage("digits", "av-digits, graph capture off and on", 60, _PACKAGE, training.digits),
    Stage("shapes", "AV-MNIST's shapes, graph capture off and on", 60, _PACKAGE, training.shapes),
    Stage("nccl", "one process through its own backend", 35, _PACKAGE, training.several),
    Stage("precision", "half precision", 35, _PACKAGE, training.precisions),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mstdistill.gpu_day", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    names = [stage.name for stage in STAGES]
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="results go to a folder in it")
    parser.add_argument("--only", action="append", choices=names, help="these stages alone")
    parser.add_argument("--skip", action="append", default=[], choices=names, help="all but these")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, of little")
    parser.add_argument("--alone", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = rehearsal() if options.rehearse else gpu()
    if device is None:
        print("gpu_day: torch sees no GPU; --rehearse runs the stages on the CPU", file=sys.stderr)
        return 2
    words = ["--rehearse"] if options.rehearse else []
    if options.alone:
        here(next(stage for stage in STAGES if stage.name == options.alone), device, options.out)
        return 0
    chosen = [stage for stage in STAGES if stage.name in (options.only or names) and stage.name not in options.skip]
    return run(chosen, device, options.out.absolute() / device.folder, words, options.fresh)


def run(stages: list[Stage], device: Device, out: Path, words: list[str], fresh: bool) -> int:
    """One stage after the other, whatever becomes of each; then the page."""
    results = []
    for number, stage in enumerate(stages, 1):
        before = None if fresh else done_before(stage, device, out)
        print(f"[{number} of {len(stages)}] {stage.name}: {stage.about}"
              + (" (has a result)" if before else f", {stage.seconds:.0f} s at most"), flush=True)  # fmt: skip
        result = before or apart(stage, device, out, words)
        print(f"    {outcome(result)}", flush=True)
        results.append(result)
        (out / "page.md").write_text(page(device, stages[:number], results))
    print(f"results: {out / 'page.md'}")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
