"""Ahead-of-time builds of every launch configuration, without a GPU: registers, shared memory, spills, atomics.

    python -m mstdistill.kernels.aot --update builds.json          # build everything (minutes on two cores)
    python -m mstdistill.kernels.aot --check builds.json --fresh 8 # sources unchanged since, limits kept, 8 built anew

A table of builds is tied to the kernels' sources: `--check` refuses one that is out of date. It says which Triton made
it; under another one what is built anew is held against the limits, not against the table.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from .configurations import SMALL, TARGETS, Build, builds

# What a configuration may use. Registers a thread: the most that hardware gives (gfx942: of 512 unified ones).
# Stack: at register counts where occupancy steps (48, 96, 128, 168) ptxas may park one 8-byte value.
LIMITS = {
    "stack": dict.fromkeys((*TARGETS, SMALL), 8),
    "registers": {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512, SMALL: 255},
    "shared": {"sm_80": 164_000, "sm_90": 228_000, "sm_100": 228_000, "gfx942": 65_536, SMALL: 101_376},
}


def triton_version() -> str:
    """Of the Triton that is installed."""
    import triton

    return str(triton.__version__)


def _kernel(build: Build) -> Any:
    from importlib import import_module

    return getattr(import_module(f"{__package__}.jit.{build.file}"), build.kernel)


@cache
def kernel_sources(file: str) -> str:
    """The kernels of a file as code alone: moving them or rewording a comment changes nothing."""
    tree = ast.parse((Path(__file__).parent / "jit" / f"{file}.py").read_text())
    kept: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            kept.append(kernel_sources(node.module))  # a file may use another's kernels
        if isinstance(node, ast.AnnAssign) and "constexpr" in ast.unparse(node.annotation):
            kept.append(ast.unparse(node))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "triton.jit" for d in node.decorator_list):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            kept.append(ast.unparse(node))
    return "\n".join(kept)


def source_key(build: Build) -> str:
    """A hash of the file's kernels and of the configuration."""
    facts = (kernel_sources(build.file), sorted(build.types.items()), sorted(build.constants.items()), build.warps,
             build.stages, build.target)  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def compile_for(build: Build) -> dict[str, Any]:
    """Compile and read what it takes: registers, stack and spilled bytes, shared memory, float atomics."""
    found = compiled(build)
    usage = _amd_usage(found) if build.target.startswith("gfx") else _nvidia_usage(found)
    return {"key": source_key(build), "shared": found.metadata.shared, **usage,
            "float_atomics": _float_atomics(found)}  # fmt: skip


def compiled(build: Build) -> Any:
    """What Triton's compiler makes of it, its texts in `asm`."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, target = _kernel(build), build.target
    constants: dict[tuple[int, ...], Any] = {}
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind = build.types.get(name)
        if kind is None or kind == "one":
            value = 1 if kind == "one" else build.constants[name]
            constants[(position,)] = getattr(tl, "float32") if value == "fp32" else value  # noqa: B009
            signature[name] = "constexpr"
        else:
            signature[name] = kind.removesuffix(":16")
            if kind.startswith("*") or kind.endswith(":16"):
                aligned[(position,)] = [["tt.divisibility", 16]]
    where = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    options = {"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=where, options=options)


def _float_atomics(found: Any) -> bool:
    text = found.asm.get("ptx") or found.asm["amdgcn"]
    return bool(re.search(r"\b(red|atom)\.\S*\b(f16|bf16|f16x2|f32|f64)\b|atomic_(pk_)?add_(f|bf)\d", text))


def _nvidia_usage(found: Any) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    number = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": number["REG"], "stack": number["STACK"] + number["LOCAL"]}


def _amd_usage(found: Any) -> dict[str, int]:
    text = found.asm["amdgcn"]

    def read(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

    return {"registers": read("vgpr_count"),
            "stack": max(read("private_segment_fixed_size"), 4 * read("vgpr_spill_count"))}  # fmt: skip


def faults(name: str, found: dict[str, Any]) -> list[str]:
    """Which limits a build breaks; of a target without limits of its own those of small GPUs."""
    target = name.rsplit(" ", 1)[1]
    out = []
    for kind, limits in LIMITS.items():
        limit = limits.get(target, limits[SMALL])
        if found[kind] > limit:
            out.append(f"{name}: {found[kind]} of {kind}, limit {limit}")
    return out + ([f"{name}: float atomics"] if found["float_atomics"] else [])


Job = Callable[[Build], dict[str, Any]]


def _job(build: Build, work: Job) -> tuple[str, dict[str, Any]]:
    try:
        return build.name, work(build)
    except Exception as error:
        return build.name, {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def compile_all(items: list[Build], processes: int, work: Job = compile_for) -> dict[str, dict[str, Any]]:
    """Compile in several processes, with a line now and then."""
    table: dict[str, dict[str, Any]] = {}
    if not items:
        return table
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=200) as pool:
        for name, found in pool.imap_unordered(partial(_job, work=work), items, chunksize=4):
            table[name] = found
            if len(table) % 50 == 0 or len(table) == len(items):
                print(f"{len(table)} of {len(items)} built", flush=True)
    return dict(sorted(table.items()))


def write(path: Path, table: dict[str, dict[str, Any]]) -> None:
    """A table of builds, one a line, with the Triton that made it."""
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(table.items())]
    version = f'"triton": {{"version": "{triton_version()}"}}'
    path.write_text("{\n" + ",\n".join([version, *lines]) + "\n}\n")


def check(table: dict[str, dict[str, Any]], fresh: int, processes: int) -> list[str]:
    """What is wrong with a table: out of date, over a limit, or different from a build made now.

    Args:
        fresh: how many to build now; the table's own where it is of this Triton, else within the limits.
    """
    items = {build.name: build for build in builds()}
    table = dict(table)
    same = table.pop("triton", {}).get("version") == triton_version()
    out = [f"{name}: no longer a configuration" for name in table if name not in items]
    for name, build in items.items():
        if name not in table:
            out.append(f"{name}: missing from the table")
        elif "error" in table[name]:
            out.append(f"{name}: {table[name]['error']}")
        elif table[name]["key"] != source_key(build):
            out.append(f"{name}: the source or the configuration changed since the table was made")
        else:
            out += faults(name, table[name])
    if out:
        return [*out, "build the table again: python -m mstdistill.kernels.aot --update FILE"]
    chosen = sorted(items, key=lambda name: hashlib.sha256(f"{name}{table[name]['key']}".encode()).hexdigest())
    for name, found in compile_all([items[name] for name in chosen[:fresh]], processes).items():
        if "error" in found:
            out.append(f"{name}: {found['error']}")
        elif same and found != table[name]:
            out.append(f"{name}: built now {found}, in the table {table[name]}")
        elif not same:
            out += faults(name, found)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, metavar="FILE", help="build everything and write the table")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare the table with the sources and the limits")
    parser.add_argument("--fresh", type=int, default=8, help="how many to build anew in --check")
    parser.add_argument("--only", default="", help="with --update: kernels whose name holds this; others are kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1: kernels can't be compiled in the interpreter; unset it")
    if options.update:
        items = builds()
        kept = json.loads(options.update.read_text()) if options.only and options.update.exists() else {}
        items = [build for build in items if options.only in build.name]
        kept.pop("triton", None)
        table = {**kept, **compile_all(items, options.processes)}
        write(options.update, table)
        wrong = [line for name, found in table.items()
                 for line in ([f"{name}: {found['error']}"] if "error" in found else faults(name, found))]  # fmt: skip
        print(*wrong, f"{len(table)} builds, {len(wrong)} beyond a limit", sep="\n")
        sys.exit(1 if wrong else 0)
    if options.check:
        table = json.loads(options.check.read_text())
        of = table.get("triton", {}).get("version")
        if of != triton_version():
            print(f"the table is of Triton {of}, this is {triton_version()}: new builds are held against the limits")
        wrong = check(table, options.fresh, options.processes)
        print(*wrong, f"{len(wrong)} complaints", sep="\n")
        sys.exit(1 if wrong else 0)
    parser.print_help()


if __name__ == "__main__":
    main()
