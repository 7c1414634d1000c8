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
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Stands for GPUs with little shared memory; the mask's attention has tiles of its own for them.
SMALL = "sm_89"
# What a configuration may use. Registers a thread: the most that hardware gives (gfx942: of 512 unified ones).
# Stack: at register counts where occupancy steps (48, 96, 128, 168) ptxas may park one 8-byte value.
LIMITS = {
    "stack": dict.fromkeys((*TARGETS, SMALL), 8),
    "registers": {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512, SMALL: 255},
    "shared": {"sm_80": 164_000, "sm_90": 228_000, "sm_100": 228_000, "gfx942": 65_536, SMALL: 101_376},
}


@dataclass(frozen=True)
class Build:
    """One kernel with everything that the compiler sees of a launch; "i32:16" is a multiple of 16, "one" is 1."""

    file: str
    kernel: str
    about: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    targets: tuple[str, ...] = field(default=TARGETS)

    def name(self, target: str) -> str:
        """Unique within the table."""
        return f"{self.file}.{self.kernel} {self.about} {target}"


def _route() -> Iterator[Build]:
    from .jit import router

    seen = set()
    for rows in (1, 1 << 20):
        for mp in (2**n for n in range(1, 11)):
            r, mp, per_block, blocks, warps = router.tiles(rows, mp)
            if (r, mp) in seen:
                continue
            seen.add((r, mp))
            about = f"R={r} MP={mp}"
            ints = {**dict.fromkeys(("B", "M", "stride_b"), "i32"), "stride_m": "one"}
            parts = {"peak_ptr": "*fp32", "sum_ptr": "*fp32", "count_ptr": "*i32", "part_ptr": "*fp32",
                     "log_sums_ptr": "*fp32", "counts_ptr": "*i64", "loss_ptr": "*fp32"}  # fmt: skip
            shared = {"MP": mp, "MODE": 2, "LOWEST": -1e30, "ACC": "fp32"}
            yield Build("router", "route_forward", f"{about} {'alone' if blocks == 1 else 'of several'}", {
                "logits_ptr": "*bf16", "weight_ptr": "*fp32", "log_probs_ptr": "*fp32", "indices_ptr": "*i64",
                **parts, **ints,
            }, {"K": min(16, mp), "R": r, "TILES": per_block, "ALONE": blocks == 1,
                "ALIGN": math.gcd(mp, 16), "WEIGHTED": True, **shared},
                warps)  # fmt: skip
            if blocks > 1:
                yield Build("router", "route_sums", about, {**parts, "M": "i32", "blocks": "i32"},
                            {"NB": max(1, min(512, 4096 // mp)), **shared}, warps)  # fmt: skip
            yield Build("router", "route_backward", about, {
                "log_probs_ptr": "*fp32", "log_sums_ptr": "*fp32", "weight_ptr": "*fp32", "outer_ptr": "*fp32",
                "sums_ptr": "*fp32", "loss_ptr": "*fp32", "grad_ptr": "*bf16", **ints,
            }, {"R": r, "MP": mp, "ALIGN": math.gcd(mp, 16), "WEIGHTED": True,
                "OUTER": True, "SUMS": True, "MODE": 2, "ACC": "fp32"},
                warps)  # fmt: skip


_KD_POINTERS = {
    "student_ptr": "*bf16", "teacher_ptr": "*fp16", "rows_ptr": "*i64", "indices_ptr": "*i64", "weights_ptr": "*fp32",
    "label_ptr": "*i64", "kd_scale_ptr": "*fp32", "task_scale_ptr": "*fp32", "loss_ptr": "*fp32", "kd_ptr": "*fp32",
    "task_ptr": "*fp32", "grad_ptr": "*bf16", "each_ptr": "*fp32", "reference_ptr": "*fp32",
}  # fmt: skip
_PLAIN = {"ROWS": False, "INDICES": True, "WEIGHTS": False, "LABEL": False, "KD_SCALE": False, "TASK_SCALE": False,
          "MIXTURE": False, "GRAD": True, "EACH": False, "REFERENCE": False}  # fmt: skip
_CACHED = {**_PLAIN, "ROWS": True, "LABEL": True, "KD_SCALE": True, "TASK_SCALE": True}
# name -> (flags, K): the plain loss, stage 3 from the cache, weights that learn, a mixture whose weights learn
_KD_FORMS: dict[str, tuple[dict[str, bool], int]] = {
    "k=1": (_PLAIN, 1),
    "k=4 cached, labelled": (_CACHED, 4),
    "k=4 weights learn": ({**_CACHED, "WEIGHTS": True, "EACH": True}, 4),
    "M=8 mixture learns": (
        {**_CACHED, "INDICES": False, "WEIGHTS": True, "MIXTURE": True, "REFERENCE": True}, 8,
    ),
    "pair": ({**_PLAIN, "INDICES": False, "REFERENCE": True, "KD_SCALE": False}, 1),
}  # fmt: skip


def _kd() -> Iterator[Build]:
    from .jit import kd_dense, kd_rows, kd_wide

    strides = dict.fromkeys(("student_b", "teacher_n", "teacher_m"), "i32")
    last = {"student_c": "one", "teacher_c": "one"}
    float32 = {"student_ptr": "*fp32", "teacher_ptr": "*fp32", "grad_ptr": "*fp32"}
    for form, (flags, k) in _KD_FORMS.items():
        for cp in (2**n for n in range(1, kd_rows.LARGEST.bit_length())):
            r, cp, warps = kd_rows.tiles(cp)
            yield Build("kd_rows", "kd_rows", f"{form} R={r} C={cp}", {
                **_KD_POINTERS, **(float32 if form == "k=1" else {}),
                **dict.fromkeys(("B", "N", "M", "C"), "i32"), **strides, **last, "ignore": "i32",
            }, {"T": 4.0, "K": k, "R": r, "CP": cp, "ALIGN": math.gcd(cp, 16), **flags, "ACC": "fp32"},
                warps)  # fmt: skip
        sizes = {**dict.fromkeys(("N", "M", "C"), "i32"), **strides, **last}
        heads = {name: _KD_POINTERS[name] for name in ("student_ptr", "teacher_ptr", "rows_ptr", "indices_ptr",
                                                       "weights_ptr")}  # fmt: skip
        where = {name: flags[name] for name in ("ROWS", "INDICES", "WEIGHTS", "MIXTURE")} | {"K": k}
        tail = {"slice_width": "i32", "S": "i32"}
        constants = {"T": 4.0, "BC": kd_wide.BLOCK, "ALIGN": 8, "ACC": "fp32"}
        yield Build("kd_wide", "kd_slices", form, {**heads, "stats_ptr": "*fp32", **sizes, **tail},
                    {**constants, **where}, kd_wide.WARPS)  # fmt: skip
        for sliced in (False, True):
            yield Build("kd_wide", "kd_wide", f"{form} {'sliced' if sliced else 'whole rows'}", {
                **_KD_POINTERS, "stats_ptr": "*fp32", **sizes, "ignore": "i32", **tail,
            }, {**constants, "K": k, "SP": 64 if sliced else 1, "SLICED": sliced,
                **{**flags, "REFERENCE": False}}, kd_wide.WARPS)  # fmt: skip
        if flags["REFERENCE"]:
            yield Build("kd_wide", "kd_wide_reference", form, {
                **heads, "kd_scale_ptr": "*fp32", "kd_ptr": "*fp32", "stats_ptr": "*fp32", "reference_ptr": "*fp32",
                **sizes, **tail,
            }, {**constants, **where, "SP": 64, "KD_SCALE": flags["KD_SCALE"]}, kd_wide.WARPS)  # fmt: skip
        for pb in (16, 128, kd_dense.PIXELS):
            yield Build("kd_dense", "kd_dense", f"{form} PB={pb}", {
                **_KD_POINTERS, "stats_ptr": "*fp32", **dict.fromkeys(("N", "M", "C", "P"), "i32"), **strides,
                "student_c": "i32", "teacher_c": "i32", "student_p": "one", "teacher_p": "one", "ignore": "i32",
            }, {"T": 4.0, "K": k, "PB": pb, "ALIGN": 16, **flags, "ACC": "fp32"}, 4)  # fmt: skip
    yield Build("kd", "scale_rows", "", {"x_ptr": "*fp32", "factor_ptr": "*fp32", "width": "i32", "per_row": "i32",
                                       "stride": "i32"},
                {"BLOCK": 4096, "ALIGN": 8, "ACC": "fp32"}, 4)  # fmt: skip


def _bernoulli() -> Iterator[Build]:
    from .jit import bernoulli

    pointers = {**_KD_POINTERS, "class_weights_ptr": "*fp32"}
    sizes = {**dict.fromkeys(("B", "N", "M", "C", "student_b", "teacher_n", "teacher_m"), "i32"), "student_c": "one",
             "teacher_c": "one"}  # fmt: skip
    for form, (flags, k) in _KD_FORMS.items():
        for cp in (2**n for n in range(1, bernoulli.LARGEST.bit_length())):
            r, cp, warps = bernoulli.tiles(cp)
            yield Build("bernoulli", "bernoulli", f"{form} R={r} C={cp}", {**pointers, **sizes}, {
                "T": 4.0, "K": k, "R": r, "CP": cp, "ALIGN": math.gcd(cp, 16), **flags,
                "CLASS_WEIGHTS": flags["LABEL"], "ACC": "fp32",
            }, warps)  # fmt: skip


def _mask() -> Iterator[Build]:
    import torch

    from .jit import apply_mask, mask

    heads = 3
    widths = sorted({mask.padded_head(width) for width in range(1, mask.MAX_HEAD + 1)})
    kinds = {"tf32": ("fp32", torch.float32, "tf32"), "ieee": ("fp32", torch.float32, "ieee"),
             "bf16": ("bf16", torch.bfloat16, "tf32")}  # fmt: skip
    for kind, (element, dtype, precision) in kinds.items():
        for width in widths:
            d0, d1, d2 = mask.head_parts(width)
            for where in (("sm_80", "sm_90", "sm_100"), ("gfx942",), (SMALL,)):
                for kernel in ("attend", "attend_backward_rows", "attend_backward_columns"):
                    backward = kernel != "attend"
                    bm, bn, warps, stages = mask.tiles(
                        dtype, width, precision, backward, where == ("gfx942",), where == (SMALL,)
                    )
                    types = {"packed_ptr": f"*{element}", "y_ptr": "*fp32", "lse_ptr": "*fp32"}
                    if backward:
                        types |= {"delta_ptr": "*fp32", "grad_ptr": f"*{element}"}
                    types |= {"d": "i32", "stride_b": "i32:16", "stride_d": "i32:16"}
                    constants = {"H": heads, "DH": width, "D0": d0, "D1": d1, "D2": d2, "BM": bm, "BN": bn,
                                 "PRECISION": precision, "UPCAST": False, "ACC": "fp32"}  # fmt: skip
                    if backward:
                        types |= {"delta_b": "i32", "delta_h": "i32", "delta_d": "one"}
                        constants["W"] = 2 * heads * width + 16
                    about = f"{kind} dh={width}"
                    yield Build("mask", kernel, about, types, constants, warps, stages, where)
    layouts = {"vectors": (596, 1, True), "maps": (512, 1200, False), "small maps": (512, 49, False),
               "tokens": (768, 197, True)}  # fmt: skip
    for layout, (d, positions, wide) in layouts.items():
        bd, bp = apply_mask.apply_tiles(d, positions, wide)
        tile = {"BD": bd, "BP": bp, "ALIGN": math.gcd(16, d if wide else positions), "WIDE": wide}
        lane = "d" if wide else "p"

        def strides(*tensors: str, lane: str = lane) -> dict[str, str]:
            return {f"{x}_{axis}": "one" if axis == lane else "i32" for x in tensors for axis in "bdp"}

        yield Build("apply_mask", "apply_mask", layout, {
            "y_ptr": "*fp32", "constant_ptr": "*fp32", "feature_ptr": "*bf16", "out_ptr": "*bf16", "mask_ptr": "*fp32",
            **dict.fromkeys(("d", "P", "per_group"), "i32"), **strides("feature", "out"),
        }, {"H": heads, **tile, "ACC": "fp32"}, 4)  # fmt: skip
        yield Build("apply_mask", "apply_mask_backward", layout, {
            "mask_ptr": "*fp32", "feature_ptr": "*bf16", "outer_ptr": "*bf16", "extra_ptr": "*fp32",
            "delta_ptr": "*fp32", "grad_ptr": "*bf16", "d": "i32", "P": "i32",
            **strides("feature", "outer", "grad"),
        }, {**tile, "EXTRA": True, "GRAD": True, "ACC": "fp32"}, 4)  # fmt: skip


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


def builds() -> list[Build]:
    """Every configuration that a launch can choose, at its most demanding flags."""
    return [*_route(), *_kd(), *_bernoulli(), *_mask()]


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


def source_key(build: Build, target: str) -> str:
    """A hash of the file's kernels and of the configuration."""
    facts = (kernel_sources(build.file), sorted(build.types.items()), sorted(build.constants.items()), build.warps,
             build.stages, target)  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def compile_for(build: Build, target: str) -> dict[str, Any]:
    """Compile and read what it takes: registers, stack and spilled bytes, shared memory, float atomics."""
    found = compiled(build, target)
    usage = _amd_usage(found) if target.startswith("gfx") else _nvidia_usage(found)
    return {"key": source_key(build, target), "shared": found.metadata.shared, **usage,
            "float_atomics": _float_atomics(found)}  # fmt: skip


def compiled(build: Build, target: str) -> Any:
    """What Triton's compiler makes of it, its texts in `asm`."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _kernel(build)
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
    """Which limits a build breaks."""
    target = name.rsplit(" ", 1)[1]
    out = []
    for kind in LIMITS:
        if found[kind] > LIMITS[kind][target]:
            out.append(f"{name}: {found[kind]} of {kind}, limit {LIMITS[kind][target]}")
    return out + ([f"{name}: float atomics"] if found["float_atomics"] else [])


def _job(item: tuple[Build, str]) -> tuple[str, dict[str, Any]]:
    build, target = item
    try:
        return build.name(target), compile_for(build, target)
    except Exception as error:
        return build.name(target), {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def compile_all(items: list[tuple[Build, str]], processes: int) -> dict[str, dict[str, Any]]:
    """Compile in several processes, with a line now and then."""
    table: dict[str, dict[str, Any]] = {}
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=200) as pool:
        for name, found in pool.imap_unordered(_job, items, chunksize=4):
            table[name] = found
            if len(table) % 50 == 0 or len(table) == len(items):
                print(f"{len(table)} of {len(items)} built", flush=True)
    return dict(sorted(table.items()))


def check(table: dict[str, dict[str, Any]], fresh: int, processes: int) -> list[str]:
    """What is wrong with a table: out of date, over a limit, or different from a build made now.

    Args:
        fresh: how many to build now; the table's own where it is of this Triton, else within the limits.
    """
    items = {build.name(target): (build, target) for build in builds() for target in build.targets}
    table = dict(table)
    same = table.pop("triton", {}).get("version") == _triton_version()
    out = [f"{name}: no longer a configuration" for name in table if name not in items]
    for name, (build, target) in items.items():
        if name not in table:
            out.append(f"{name}: missing from the table")
        elif "error" in table[name]:
            out.append(f"{name}: {table[name]['error']}")
        elif table[name]["key"] != source_key(build, target):
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
        items = [(build, target) for build in builds() for target in build.targets]
        kept = json.loads(options.update.read_text()) if options.only and options.update.exists() else {}
        items = [item for item in items if options.only in item[0].name(item[1])]
        kept.pop("triton", None)
        table = {**kept, **compile_all(items, options.processes)}
        lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(table.items())]
        version = f'"triton": {{"version": "{_triton_version()}"}}'
        options.update.write_text("{\n" + ",\n".join([version, *lines]) + "\n}\n")
        wrong = [line for name, found in table.items()
                 for line in ([f"{name}: {found['error']}"] if "error" in found else faults(name, found))]  # fmt: skip
        print(*wrong, f"{len(table)} builds, {len(wrong)} beyond a limit", sep="\n")
        sys.exit(1 if wrong else 0)
    if options.check:
        table = json.loads(options.check.read_text())
        of = table.get("triton", {}).get("version")
        if of != _triton_version():
            print(f"the table is of Triton {of}, this is {_triton_version()}: new builds are held against the limits")
        wrong = check(table, options.fresh, options.processes)
        print(*wrong, f"{len(wrong)} complaints", sep="\n")
        sys.exit(1 if wrong else 0)
    parser.print_help()


if __name__ == "__main__":
    main()
