"""How wide a kernel's loads and stores are, read from what the compiler makes, without a GPU.

    python -m mstdistill.kernels.loads "k=1 whole" apply_mask

A kernel that waits for memory wants 16 bytes an instruction and thread: with 2 bytes it issues eight times as many, and
the load units are busy before the memory is. The compiler takes wide ones only where it can tell that sizes and strides
are multiples (`ALIGN`, see `jit/base.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from typing import Any

from .aot import Build, builds, compiled

# NVIDIA's alone: their texts name each access's width.
TARGET = "sm_90"
_ACCESS = re.compile(r"\b(ld|st)\.global([\w.:]*)")
_TILE = re.compile(r"\btt\.(load|store) .*: (?:tensor<((?:\d+x)+))?!tt\.ptr<[a-z]+(\d+)\w*>")


def accesses(ptx: str) -> dict[str, dict[int, int]]:
    """Of global loads ("ld") and stores ("st"): bytes a thread -> how many instructions."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, suffix in _ACCESS.findall(ptx):
        parts = suffix.split(".")
        vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
        found[kind][vector * int(parts[-1][1:]) // 8] += 1
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
    """Of a build: `accesses`, its blocks' `threads` and the `tiles`' bytes."""
    text = compiled(build, TARGET).asm
    return {**accesses(text["ptx"]), "threads": 32 * build.warps, "tiles": tile_bytes(text["ttgir"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="builds whose name holds one of these; none: all of them")
    options = parser.parse_args()
    for build in builds():
        name = build.name(TARGET)
        if TARGET in build.targets and (not options.words or any(word in name for word in options.words)):
            print(json.dumps({"build": name, **look(build)}), flush=True)


if __name__ == "__main__":
    main()
