"""How wide a kernel's loads and stores are, read from what the compiler makes, without a GPU.

    python -m mstdistill.kernels.loads "k=1 whole" apply_mask

A kernel that waits for memory wants 16 bytes an instruction and thread: with 2 bytes it issues eight times as many, and
the load units are busy before the memory is. The compiler takes wide ones only where it can tell that sizes and strides
are multiples (`ALIGN`, see `jit/base.py`). Widths and instructions are those of the disassembly: what the GPU is given.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from .aot import compiled
from .configurations import Build, builds

# NVIDIA's alone: their texts name each access's width.
TARGET = "sm_90"
# Of the disassembly: an instruction after its address, with or without a predicate.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", re.MULTILINE)
_ACCESS = re.compile(r"(LDG|LDGSTS|STG)\.E")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_TILE = re.compile(r"\btt\.(load|store) .*: (?:tensor<((?:\d+x)+))?!tt\.ptr<[a-z]+(\d+)\w*>")


def disassembly(cubin: bytes) -> str:
    """What the GPU is given, in words."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, file.name], capture_output=True, text=True, check=True).stdout


def instructions(sass: str) -> list[str]:
    """In order; what only fills up is left out."""
    return [name for name in _INSTRUCTION.findall(sass) if name != "NOP"]


def accesses(sass: str) -> dict[str, dict[int, int]]:
    """Of global loads ("ld") and stores ("st"): bytes a thread -> how many instructions."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for name in instructions(sass):
        if _ACCESS.match(name):
            width = next((_WIDTHS[part] for part in name.split(".") if part in _WIDTHS), 4)
            found["st" if name.startswith("STG") else "ld"][width] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}


def tile_bytes(ttgir: str) -> dict[str, int]:
    """Bytes of the tiles that a block loads ("ld") and stores ("st"), each statement of the kernel counted once."""
    found = {"ld": 0, "st": 0}
    for kind, shape, bits in _TILE.findall(ttgir):
        found[{"load": "ld", "store": "st"}[kind]] += math.prod(map(int, shape.split("x")[:-1])) * int(bits) // 8
    return found


def share_of(counts: dict[int, int], width: int, threads: int, tiles: int) -> float:
    """Part of a block's bytes that come in accesses of at least `width` bytes.

    The tiles' bytes are the whole, not the accesses': every thread reads a row's own numbers, all from one address, and
    once for each layout that needs them (Triton 3.8 would rather read a label again than move it to other threads).
    """
    return min(1.0, threads * sum(size * number for size, number in counts.items() if size >= width) / max(1, tiles))


def look(build: Build) -> dict[str, Any]:
    """Of a build for NVIDIA: `accesses`, how many `instructions`, its blocks' `threads` and the `tiles`' bytes."""
    asm = compiled(build).asm
    sass = disassembly(asm["cubin"])
    return {**accesses(sass), "instructions": len(instructions(sass)), "threads": 32 * build.warps,
            "tiles": tile_bytes(asm["ttgir"])}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="builds whose name holds one of these; none: all of them")
    options = parser.parse_args()
    for build in builds():
        if build.target == TARGET and (not options.words or any(word in build.name for word in options.words)):
            print(json.dumps({"build": build.name, **look(build)}), flush=True)


if __name__ == "__main__":
    main()
