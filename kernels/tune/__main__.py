"""Choose tiles.

    python -m mstdistill.kernels.tune                           # candidates ranked by a cost model, without a GPU
    python -m mstdistill.kernels.tune --out tiles.json          # timed on this GPU; what is better, as a launch table
    MSTDISTILL_TILES=tiles.json mstdistill train ...            # and taken
    python -m mstdistill.kernels.tune --update                  # builds of the candidates anew, after a kernel changed

What may be chosen are candidates whose ahead-of-time builds spill nothing and keep the limits (candidates.json); the
model, stated in model.py, only says in which order they are tried.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import aot
from ..launch import interpreted
from ..loads import share_of
from ..tiles import KERNELS, Table, device_names
from . import model
from .candidates import TARGETS, Candidate, builds_of, candidates, facts_of, refusal
from .problems import elements_of, problem_of
from .search import Group, grouped, search, table_of

BUILDS = Path(__file__).with_name("candidates.json")


def listed() -> dict[str, dict[str, Any]]:
    """The candidates' builds, as they were made."""
    table = json.loads(BUILDS.read_text())
    return {name: model.numbers(found) for name, found in table.items() if name != "triton"}


def choosable(target: str, kernels: Sequence[str], builds: dict[str, dict[str, Any]]) -> list[Candidate]:
    """Candidates of these kernels that may be chosen, the best by the model first."""
    machine = model.machine_of(target)
    ranked = []
    for one in candidates():
        own = builds_of(one, target) if one.kernel in kernels else []
        if own and not refusal(own, builds):
            cost = model.seconds(machine, [builds[b.name] for b in own], one.elements, elements_of(one))
            ranked.append((cost, one))
    return [one for _, one in sorted(ranked, key=lambda item: item[0])]


def updated(targets: Sequence[str], kernels: Sequence[str], processes: int) -> dict[str, dict[str, Any]]:
    """Builds for these targets: those of before where nothing changed, else new ones."""
    wanted = [b for target in targets for one in candidates() if one.kernel in kernels for b in builds_of(one, target)]
    before = json.loads(BUILDS.read_text()) if BUILDS.exists() else {}
    same = before.pop("triton", {}).get("version") == aot.triton_version()
    new = [b for b in wanted if not same or before.get(b.name, {}).get("key") != aot.source_key(b)]
    return {**{b.name: before[b.name] for b in wanted if b not in new}, **aot.compile_all(new, processes, facts_of)}


def check(fresh: int, processes: int) -> list[str]:
    """What is wrong with the list: builds missing, of other sources, or, of some, not as they come out now."""
    table = json.loads(BUILDS.read_text())
    same = table.pop("triton", {}).get("version") == aot.triton_version()
    builds = {b.name: b for target in TARGETS for one in candidates() for b in builds_of(one, target)}
    out = [f"{name}: no longer a candidate" for name in table if name not in builds]
    out += [f"{name}: missing, or of other sources" for name, b in builds.items()
            if table.get(name, {}).get("key") != aot.source_key(b)]  # fmt: skip
    if out:
        return [*out[:10], "build the list again: python -m mstdistill.kernels.tune --update"]
    chosen = sorted(builds, key=lambda name: table[name]["key"])[:fresh] if same else []
    for name, found in aot.compile_all([builds[name] for name in chosen], processes, facts_of).items():
        if model.numbers(found) != model.numbers(table[name]):
            out.append(f"{name}: built now {found}, in the list {table[name]}")
    return out


def show(ranked: Sequence[Candidate], target: str, builds: dict[str, dict[str, Any]]) -> None:
    """Each group's candidates in the model's order, with what the order comes from."""
    machine = model.machine_of(target)
    for name, group in grouped(ranked, (target, "any")).items():
        print(f"\n{name} (standing: {_words(group.candidates[0])})")
        print("  model us  registers  shared  warps held  16-byte loads  instructions/KB  choice")
        for one in (one for one in ranked if one.group == name):
            own = [builds[b.name] for b in builds_of(one, target)]
            cost = model.seconds(machine, own, one.elements, elements_of(one))
            first = own[0]
            moved = first["tiles"]["ld"] + first["tiles"]["st"]
            print(f"  {1e6 * cost:8.1f}  {first['registers']:9}  {first['shared']:6}"
                  f"  {model.resident(machine, first) * first['threads'] // 32:10}"
                  f"  {share_of(first['ld'], 16, first['threads'], first['tiles']['ld']):13.0%}"
                  f"  {first['instructions'] * first['threads'] / 32 / moved * 1024:15.0f}  {_words(one)}")  # fmt: skip


def _words(one: Candidate) -> str:
    return one.name.partition(": ")[2]


def timed(groups: dict[str, Group], device: torch.device, budget: float) -> list[str]:
    """Time the groups' candidates on the device; see `search`."""
    os.environ["MSTDISTILL_KERNELS"] = "triton"
    clock = _gpu_seconds() if device.type == "cuda" else _cpu_seconds

    calls: dict[str, Callable[[], list[Tensor]]] = {}

    def measure(one: Candidate) -> tuple[float, list[Tensor]]:
        if one.group not in calls:  # some GB of all groups together
            calls[one.group] = problem_of(one, device)
        call = calls[one.group]
        found = [x.clone() for x in call()]
        return clock(call), found

    return search(groups, measure, budget, lambda line: print(line, flush=True))


def _gpu_seconds() -> Any:
    import statistics

    from ..bench.measure import Gpu

    gpu = Gpu(seconds=0.05)
    return lambda call: statistics.median(gpu.times([call]))


def _cpu_seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m mstdistill.kernels.tune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="these alone; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="time on this GPU; write the launch table")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of timing, with --out")
    parser.add_argument("--most", type=int, default=1000, help="candidates of a group to time, with --out")
    parser.add_argument("--target", default="sm_90", help="without a GPU: rank for this one")
    parser.add_argument("--update", action="store_true", help="build the candidates anew where something changed")
    parser.add_argument("--check", type=int, metavar="N", help="look the list over, and build N of it anew")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    kernels = options.kernel or list(KERNELS)
    if options.update:
        aot.write(BUILDS, updated(TARGETS, list(KERNELS), options.processes))
        return {}
    if options.check is not None:
        wrong = check(options.check, options.processes)
        print(*wrong, f"{len(wrong)} complaints", sep="\n")
        sys.exit(1 if wrong else 0)
    if options.out is None:
        builds = listed()
        known = {name.rsplit(" ", 1)[1] for name in builds}
        if options.target not in known:
            sys.exit(f"tune: --target {options.target}: candidates are built for {', '.join(sorted(known))}")
        show(choosable(options.target, kernels, builds), options.target, builds)
        return {}
    return _tune(options.out, kernels, options.budget, options.most, options.processes)


def _tune(out: Path, kernels: Sequence[str], budget: float, most: int, processes: int) -> dict[str, Any]:
    """Search, write the table, and say what was found."""
    if interpreted():  # a rehearsal: the order is the model's, the times are the interpreter's
        device = torch.device("cpu")
    elif torch.cuda.is_available() and torch.version.hip is None:
        device = torch.device("cuda")
    else:
        sys.exit("tune: --out times candidates on NVIDIA's GPUs, and torch sees none; without --out they are ranked")
    where = device_names(device)
    target = where[0] if device.type == "cuda" else "sm_90"
    builds = listed()
    if target not in {name.rsplit(" ", 1)[1] for name in builds}:
        print(f"candidates are built for {target}", flush=True)
        builds = {name: model.numbers(found) for name, found in updated([target], kernels, processes).items()}
    groups = grouped(choosable(target, kernels, builds), where)
    for group in groups.values():
        del group.candidates[most + 1 :]
    left = timed(groups, device, budget)
    table: Table = table_of(groups, where[0], where)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1) + "\n")
    temporary.replace(out)
    gains = {name: group.seconds[group.candidates[0].name] / group.seconds[group.best.name]
             for name, group in groups.items() if group.best is not None}  # fmt: skip
    wrong = {one: why for group in groups.values() for one, why in group.wrong.items()}
    print(f"{len(gains)} of {len(groups)} groups have a better choice; table: {out}")
    return {"device": torch.cuda.get_device_name() if device.type == "cuda" else "interpreter", "gains": gains,
            "wrong": wrong, "left": left,
            "seconds": {name: dict(group.seconds) for name, group in groups.items()}}  # fmt: skip


if __name__ == "__main__":
    main()
