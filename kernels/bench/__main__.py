"""Measure the kernels.

    python -m mstdistill.kernels.bench                                # everything this machine can run
    python -m mstdistill.kernels.bench --kernel kd --baselines eager,compile,liger --json kd.json
    python -m mstdistill.kernels.bench --plot plots                   # roofline plots, with matplotlib

Without a GPU: the fewest bytes and operations of every case, and what the plain forms gain over the textbook ones on
this CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..launch import triton_missing
from . import report
from .cases import Case, Form, cases
from .measure import Cpu, Figures, Gpu, cpu_peak, error_of, plain_kernels

BASELINES = {
    "eager": ("eager",),
    "compile": ("compile",),
    "liger": ("liger",),
    "sdpa": ("mha, no weights", "sdpa", "sdpa, scalar values"),
    "flex": ("flex",),
}


def forms_of(case: Case, baselines: list[str]) -> dict[str, Form]:
    """The forms to measure, ours first."""
    wanted = [name for baseline in baselines for name in BASELINES[baseline]]
    found = {"ours": case.forms["ours"]}
    for name in wanted:
        if name == "compile":
            found[name] = torch.compile(case.forms["eager"])
        elif name in case.forms:
            found[name] = case.forms[name]
    return found


def _row(case: Case, name: str, figures: Figures, ours: float | None, ceiling: float | None) -> report.Row:
    seconds = figures["both"]["us"] / 1e6
    rate = case.bytes_both / seconds / 1e9
    return {
        "kernel": case.kernel, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."), "form": name,
        "bytes_both": case.bytes_both, "flops_both": case.flops_both, "gb_s": rate,
        "share": 100e9 * rate / ceiling if ceiling else None, "tflop_s": case.flops_both / seconds / 1e12,
        "graph_us": None, "launches": None, "ratio": figures["both"]["us"] / ours if ours else 1.0, **figures,
    }  # fmt: skip


def on_gpu(chosen: list[Case], baselines: list[str], budget: float) -> dict[str, Any]:
    """Times of every case on the GPU."""
    gpu, rows, missing, started = Gpu(), [], [], time.monotonic()
    ceiling = gpu.copy_ceiling()
    for case in chosen:
        ours: float | None = None
        for name, form in forms_of(case, baselines).items():
            if time.monotonic() - started > budget:
                missing.append(f"{case.kernel} {case.shape} {name}: beyond --budget")
                continue
            try:
                figures = gpu.measure(case, form)
                figures["error"] = error_of(case, form, gpu.device) if case.bytes_both < 2e9 else None
            except (RuntimeError, ImportError) as error:  # out of memory, or a baseline that refuses the shape
                missing.append(f"{case.kernel} {case.shape} {name}: {str(error).splitlines()[0][:100]}")
                torch.cuda.empty_cache()
                continue
            row = _row(case, name, figures, ours, ceiling)
            ours = ours or figures["both"]["us"]
            rows.append(row)
            say(f"{case.kernel} {case.shape} {name}: {figures['both']['us']:,.1f} us")
    return {"device": torch.cuda.get_device_name(), "copy_gb_s": ceiling / 1e9, "rows": rows, "missing": missing}


def on_cpu(chosen: list[Case], baselines: list[str], runs: int) -> dict[str, Any]:
    """Ratios of the plain forms on the CPU: the medians of some runs, each apart from the others by all cases."""
    cpu, rows = Cpu(), []
    missing = ["no GPU: times of the Triton forms, share of the copy ceiling, launches, graphs"]
    fit = [case for case in chosen if case.on_cpu]
    missing += [f"{case.kernel} {case.shape}: too large for a CPU" for case in chosen if not case.on_cpu]
    forms = [forms_of(case, [x for x in baselines if x in ("eager", "sdpa", "liger")]) for case in fit]
    with plain_kernels():
        measured: list[list[dict[str, Figures]]] = [[] for _ in fit]
        for run in range(runs):
            for case, own, found in zip(fit, forms, measured, strict=True):
                found.append(cpu.measure(case, own))
                say(f"run {run + 1} of {runs}: {case.kernel} {case.shape}")
        for case, own, found in zip(fit, forms, measured, strict=True):
            for name, form in own.items():
                figures = _median([one[name] for one in found])
                figures["peak_mb"] = cpu_peak(case, form)
                figures["error"] = error_of(case, form, cpu.device) if case.flops_both < 5e10 else None
                row = _row(case, name, figures, None, None)
                ratios = [one[name]["both"]["us"] / one["ours"]["both"]["us"] for one in found]
                rows.append({**row, "ratio": statistics.median(ratios), "ratios": ratios})
    threads, vectors = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    device = f"CPU with {vectors}, {threads} thread{'s' if threads > 1 else ''}"
    return {"device": device, "rows": rows, "missing": missing}


def _median(runs: list[Figures]) -> Figures:
    """Of several runs' figures, each by itself."""
    return {
        what: {key: statistics.median(run[what][key] for run in runs) for key in figures}
        for what, figures in runs[0].items()
    }


def say(line: str) -> None:
    """Progress, apart from the result on standard output."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mstdistill.kernels.bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kernels = list(dict.fromkeys(case.kernel for case in cases()))
    parser.add_argument("--kernel", action="append", choices=kernels, help="which kernels; default all")
    parser.add_argument("--shape", default="", help="only shapes whose name holds this")
    parser.add_argument("--baselines", default=",".join(BASELINES), help=f"of {', '.join(BASELINES)}; default all")
    parser.add_argument("--plan", action="store_true", help="bytes and operations only; measure nothing")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS",
                        help="on a GPU: measure no more after this long, and say what was left out")  # fmt: skip
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="on a CPU: give the medians of so many runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write roofline plots (needs matplotlib and a GPU)")
    options = parser.parse_args(arguments)
    baselines = [name for name in options.baselines.split(",") if name]
    for name in baselines:
        if name not in BASELINES:
            parser.error(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    chosen = [case for case in cases() if case.kernel in (options.kernel or kernels) and options.shape in case.shape]
    if not chosen:
        parser.error(f"no shape of {', '.join(options.kernel or kernels)} holds {options.shape!r}")

    started = time.monotonic()
    facts: dict[str, Any] = {"device": "none", "rows": [], "missing": ["everything but the plan: --plan"]}
    if not options.plan:
        facts = on_gpu(chosen, baselines, options.budget) if torch.cuda.is_available() else (
            on_cpu(chosen, baselines, options.runs)
        )  # fmt: skip
    for name, package in (("liger", "liger_kernel"),):
        if name in baselines and not options.plan and not _installed(package):
            facts["missing"].append(f"baseline {name}: {package} is not installed")
    facts |= {
        "torch": torch.__version__, "triton": _version("triton") if not triton_missing() else triton_missing(),
        "command": "python -m mstdistill.kernels.bench " + " ".join(arguments or sys.argv[1:]),
        "seconds": round(time.monotonic() - started, 1),
        "plan": [{"kernel": case.kernel, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."),
                  "bytes_forward": case.bytes_forward, "bytes_both": case.bytes_both,
                  "flops_forward": case.flops_forward, "flops_both": case.flops_both} for case in chosen],
    }  # fmt: skip
    text = report.markdown(facts)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text)
    if options.plot:
        if not torch.cuda.is_available() or not _installed("matplotlib"):
            say("--plot: a roofline needs times on a GPU, and matplotlib; nothing was drawn")
        else:
            for path in report.roofline(facts, options.plot):
                say(f"wrote {path}")
    return 0


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
